//! An ELF vmcore: `/proc/vmcore` in a capture kernel, or a copy of one.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::addr::{PageSize, Pfn, PfnRange, PhysAddr, VirtAddr, to_u64, to_usize};
use crate::format::elf::{self, ElfError, PhNum, Segment, SegmentKind};
use crate::format::note::{self, Note, NoteHeader, NoteKind};
use crate::format::vmcoreinfo::{self, VmcoreInfo};
use crate::source::extents::{self, Anomaly, Extent};
use crate::source::{PageReader, PhysicalMemory, ReadError};
use crate::sys::mmap::Window;

/// Bytes of memory that one reader maps at a time. Mapping costs the capture kernel a page-table entry per
/// page; from 16 MiB on that no longer shows beside the copy.
const WINDOW: u64 = 16 << 20;
/// Alignment of a window's file offset: the largest page size that Linux has.
const WINDOW_ALIGN: u64 = 64 << 10;
/// Most program headers that are read; a machine with a million memory ranges does not exist.
const MAX_SEGMENTS: u64 = 1 << 20;
/// Program headers that are decoded at a time.
const SEGMENT_BATCH: u64 = 1024;
/// Most notes that are listed: four per possible CPU of the largest kernel configuration (8,192).
const MAX_NOTES: usize = 32 * 1024;
/// Bytes of device dumps (NT_VMCOREDD) that are copied; the rest is left out and told.
const MAX_DEVICE_DUMPS: u64 = 64 << 20;

/// Why a file cannot be used as a vmcore at all.
#[derive(Debug, thiserror::Error)]
pub enum VmcoreError {
    /// The file cannot be opened.
    #[error("opening {path}")]
    Open {
        /// Which file.
        path: String,
        /// Cause.
        source: io::Error,
    },
    /// A directory, a device or the like.
    #[error("{0} is not a regular file")]
    NotAFile(String),
    /// Its length is unknown, or a header cannot be read.
    #[error("reading {what} of the vmcore")]
    Read {
        /// Which structure.
        what: &'static str,
        /// Cause.
        source: io::Error,
    },
    /// Not an ELF64 core file.
    #[error("the vmcore is not usable")]
    Elf(#[from] ElfError),
    /// No memory in it.
    #[error(
        "the vmcore holds no memory: none of its {0} program headers is a PT_LOAD with bytes in the file"
    )]
    NoMemory(u64),
}

/// How page data is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Mapped windows, with `pread` where mapping fails.
    Mmap,
    /// `pread` only: a page at a time in the kernel, so slow, but without any mapping.
    Pread,
}

/// The notes of a vmcore, by where they lie in the file.
#[derive(Clone, Debug, Default)]
pub struct NoteIndex {
    /// The notes in their order.
    pub notes: Vec<Note>,
}

impl NoteIndex {
    /// Bytes of all notes together.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.notes.iter().fold(0, |sum, note| sum.saturating_add(note.len))
    }

    /// Whether there is no note.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.notes.is_empty()
    }

    /// Number of CPUs whose registers are there.
    #[must_use]
    pub fn cpus(&self) -> u32 {
        let count = self.notes.iter().filter(|note| note.kind == NoteKind::CpuRegisters).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }
}

/// An open vmcore.
#[derive(Debug)]
pub struct Vmcore {
    file: File,
    len: u64,
    access: Access,
    machine: u16,
    page_size: PageSize,
    extents: Vec<Extent>,
    ranges: Vec<PfnRange>,
    mappings: Vec<(VirtAddr, PhysAddr, u64)>,
    notes: NoteIndex,
    info: VmcoreInfo,
    anomalies: Vec<Anomaly>,
}

impl Vmcore {
    /// Opens a vmcore and reads its headers and notes. Whatever is wrong with them but leaves memory to save
    /// is listed in [`Vmcore::anomalies`].
    pub fn open(path: &Path, access: Access) -> Result<Self, VmcoreError> {
        let name = || path.display().to_string();
        let file = File::open(path).map_err(|source| VmcoreError::Open { path: name(), source })?;
        let meta = file.metadata().map_err(|source| VmcoreError::Read { what: "length", source })?;
        if !meta.is_file() {
            return Err(VmcoreError::NotAFile(name()));
        }
        Self::from_file(file, meta.len(), access)
    }

    fn from_file(file: File, len: u64, access: Access) -> Result<Self, VmcoreError> {
        let mut anomalies = Vec::new();
        let head = read_up_to(&file, 0, elf::HEADER_LEN, "ELF header")?;
        let header = elf::Header::parse(&head)?;
        let claimed = match header.phnum {
            PhNum::Direct(count) => count,
            PhNum::InSectionHeader(at) => {
                let bytes = read_up_to(&file, at, elf::SECTION_HEADER_LEN, "section header 0")?;
                elf::phnum_of_section_header(&bytes)?
            }
        };
        let segments = read_segments(&file, header.phoff, claimed)?;
        if to_u64(segments.len()) < claimed {
            anomalies.push(Anomaly::MissingProgramHeaders { claimed, found: to_u64(segments.len()) });
        }
        let (extents, lies) = extents::from_segments(&segments, len);
        anomalies.extend(lies);
        if extents.is_empty() {
            return Err(VmcoreError::NoMemory(claimed));
        }
        let notes = index_notes(&file, len, &segments, &mut anomalies);
        let info = read_vmcoreinfo(&file, &notes);
        let page_size = info.page_size().unwrap_or(PageSize::FOUR_KIB);
        let ranges = extents::to_ranges(&extents, page_size);
        let loads = segments.iter().filter(|s| s.kind == SegmentKind::Load && s.vaddr != VirtAddr(0));
        let mappings = loads.map(|s| (s.vaddr, s.paddr, s.memsz)).collect();
        Ok(Self {
            file,
            len,
            access,
            machine: header.machine,
            page_size,
            extents,
            ranges,
            mappings,
            notes,
            info,
            anomalies,
        })
    }

    /// `e_machine` of the ELF header.
    #[must_use]
    pub fn machine(&self) -> u16 {
        self.machine
    }

    /// The notes that are worth copying.
    #[must_use]
    pub fn notes(&self) -> &NoteIndex {
        &self.notes
    }

    /// VMCOREINFO; empty if the core has none.
    #[must_use]
    pub fn info(&self) -> &VmcoreInfo {
        &self.info
    }

    /// What the headers claim and the file does not bear out.
    #[must_use]
    pub fn anomalies(&self) -> &[Anomaly] {
        &self.anomalies
    }

    /// Virtual ranges that the ELF header maps: (virtual start, physical start, bytes).
    #[must_use]
    pub fn mappings(&self) -> &[(VirtAddr, PhysAddr, u64)] {
        &self.mappings
    }

    /// Reads bytes of a note at its file offset.
    pub fn read_note_bytes(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }
}

impl PhysicalMemory for Vmcore {
    fn page_size(&self) -> PageSize {
        self.page_size
    }

    fn ranges(&self) -> &[PfnRange] {
        &self.ranges
    }

    fn read_exact_at(&self, addr: PhysAddr, out: &mut [u8]) -> Result<(), ReadError> {
        fill(&self.extents, self.page_size, addr, out, |offset, part| self.file.read_exact_at(part, offset))
    }

    fn page_reader(&self) -> Box<dyn PageReader + '_> {
        Box::new(VmcoreReader { core: self, window: None, may_map: self.access == Access::Mmap })
    }
}

/// Reads pages through a window that moves along with them.
struct VmcoreReader<'a> {
    core: &'a Vmcore,
    window: Option<Window>,
    may_map: bool,
}

impl PageReader for VmcoreReader<'_> {
    fn read_page(&mut self, pfn: Pfn, page: &mut [u8]) -> Result<(), ReadError> {
        let core = self.core;
        let addr = core.page_size.addr_of(pfn).ok_or(ReadError::Hole(PhysAddr(u64::MAX)))?;
        fill(&core.extents, core.page_size, addr, page, |offset, part| self.read_at(offset, part))
    }
}

impl VmcoreReader<'_> {
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
        self.core.file.read_exact_at(out, offset)
    }

    /// Maps the window that starts at or before `offset`; leaves none if that fails.
    fn move_window(&mut self, offset: u64, len: usize) {
        let start = offset
            .checked_next_multiple_of(WINDOW_ALIGN)
            .map_or(offset, |up| if up == offset { offset } else { up.saturating_sub(WINDOW_ALIGN) });
        let end = start.saturating_add(WINDOW).max(offset.saturating_add(to_u64(len))).min(self.core.len);
        match Window::map(&self.core.file, start, to_usize(end.saturating_sub(start))) {
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

/// Fills `out` from the extents: bytes of a page that no extent holds are zero if the page has others.
fn fill(
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

/// Zeroes `gap`, which no extent holds, in `out`, provided that every page in it has bytes in an extent.
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

/// Reads up to `len` bytes; fewer only at the end of the file.
fn read_up_to(file: &File, offset: u64, len: usize, what: &'static str) -> Result<Vec<u8>, VmcoreError> {
    let mut bytes = vec![0; len];
    let mut have = 0;
    while let Some(rest) = bytes.get_mut(have..).filter(|rest| !rest.is_empty()) {
        let at = offset.saturating_add(to_u64(have));
        match file.read_at(rest, at) {
            Ok(0) => break,
            Ok(got) => have = have.saturating_add(got),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(source) => return Err(VmcoreError::Read { what, source }),
        }
    }
    bytes.truncate(have);
    Ok(bytes)
}

/// Reads program headers in batches and keeps those that matter, so that a hostile count costs no memory.
fn read_segments(file: &File, phoff: u64, count: u64) -> Result<Vec<Segment>, VmcoreError> {
    let mut segments = Vec::new();
    let mut index = 0;
    let count = count.min(MAX_SEGMENTS);
    while index < count {
        let batch = SEGMENT_BATCH.min(count.saturating_sub(index));
        let Some(offset) = elf::table_offset(phoff, index) else { break };
        let bytes = read_up_to(file, offset, elf::table_len(batch), "program headers")?;
        let got = elf::parse_segments(&bytes)?;
        let short = to_u64(got.len()) < batch;
        segments.extend(got);
        if short {
            break;
        }
        index = index.saturating_add(batch);
    }
    Ok(segments)
}

/// Lists the notes of all PT_NOTE segments. A note that cannot be read ends its segment, no more.
fn index_notes(file: &File, file_len: u64, segments: &[Segment], anomalies: &mut Vec<Anomaly>) -> NoteIndex {
    let mut index = NoteIndex::default();
    let mut seen = 0_usize; // with those that are left out, which a hostile core has without end
    let (mut device_dumps, mut left_out) = (0_u64, 0_u64);
    for segment in segments.iter().filter(|segment| segment.kind == SegmentKind::Note) {
        let mut at = segment.offset;
        let end = segment.offset.saturating_add(segment.filesz);
        while at < end && seen < MAX_NOTES {
            seen = seen.saturating_add(1);
            match read_note(file, at) {
                Some(note) if at.saturating_add(note.len) <= end.min(file_len) => {
                    at = at.saturating_add(note.len);
                    if note.kind == NoteKind::DeviceDump {
                        let sum = device_dumps.saturating_add(note.len);
                        if sum > MAX_DEVICE_DUMPS {
                            left_out = left_out.saturating_add(note.len);
                            continue;
                        }
                        device_dumps = sum;
                    }
                    index.notes.push(note);
                }
                None if read_up_to(file, at, 1, "notes").is_ok_and(|bytes| !bytes.is_empty()) => break,
                _ => {
                    let bytes = end.saturating_sub(at);
                    anomalies.push(Anomaly::NotesPastEnd { offset: at, bytes });
                    break;
                }
            }
        }
    }
    if left_out > 0 {
        anomalies.push(Anomaly::DeviceDumpsLeftOut { bytes: left_out });
    }
    index
}

/// The note at `offset`, or `None` for padding (zeros) and for bytes that cannot be read.
fn read_note(file: &File, offset: u64) -> Option<Note> {
    let bytes = read_up_to(file, offset, note::HEADER_LEN, "note header").ok()?;
    let header = NoteHeader::parse(&bytes).filter(|header| !header.is_empty())?;
    let name_at = offset.checked_add(to_u64(note::HEADER_LEN))?;
    let name = read_up_to(file, name_at, header.name_to_read(), "note name").ok()?;
    header.locate(offset, &name)
}

fn read_vmcoreinfo(file: &File, notes: &NoteIndex) -> VmcoreInfo {
    let found = notes.notes.iter().find(|note| note.kind == NoteKind::VmcoreInfo);
    let text = found.and_then(|note| {
        let len = to_usize(note.desc_len).min(vmcoreinfo::MAX_LEN);
        read_up_to(file, note.desc_offset, len, "VMCOREINFO").ok()
    });
    VmcoreInfo::parse(&text.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::testing::CoreFile;

    const PAGE: usize = 4096;

    fn open(core: &CoreFile, access: Access) -> Vmcore {
        let file = core.write();
        Vmcore::open(file.path(), access).unwrap()
    }

    #[test]
    fn mapped_and_read_pages_are_the_same() {
        let core = CoreFile::new().memory(0x1000, 300, 1).memory(0x100_0000, 5000, 2);
        let (mapped, read) = (open(&core, Access::Mmap), open(&core, Access::Pread));
        assert_eq!(mapped.ranges(), read.ranges());
        let (mut a, mut b) = (mapped.page_reader(), read.page_reader());
        let (mut x, mut y) = (vec![0; PAGE], vec![1; PAGE]);
        for range in mapped.ranges() {
            for pfn in range.start().0..range.end().0 {
                a.read_page(Pfn(pfn), &mut x).unwrap();
                b.read_page(Pfn(pfn), &mut y).unwrap();
                assert!(x == y, "page {pfn:#x}");
                assert_eq!(x, core.page(pfn), "page {pfn:#x}");
            }
        }
    }

    #[test]
    fn partial_pages_are_padded_and_holes_are_holes() {
        let core = CoreFile::new().segment(0x1800, &[7; 0x800]).segment(0x2000, &[8; 0x10]);
        let core = open(&core, Access::Mmap);
        let mut page = vec![1; PAGE];
        let mut reader = core.page_reader();
        reader.read_page(Pfn(1), &mut page).unwrap();
        assert!(page[..0x800].iter().all(|&b| b == 0) && page[0x800..].iter().all(|&b| b == 7));
        reader.read_page(Pfn(2), &mut page).unwrap();
        assert!(page[..0x10].iter().all(|&b| b == 8) && page[0x10..].iter().all(|&b| b == 0));
        assert!(matches!(reader.read_page(Pfn(3), &mut page), Err(ReadError::Hole(PhysAddr(0x3000)))));
        assert!(matches!(reader.read_page(Pfn(0), &mut page), Err(ReadError::Hole(PhysAddr(0)))));
        let mut span = vec![1; 0x3000];
        assert!(matches!(
            core.read_exact_at(PhysAddr(0x1000), &mut span),
            Err(ReadError::Hole(PhysAddr(0x3000)))
        ));
        core.read_exact_at(PhysAddr(0x1ffc), &mut span[..8]).unwrap();
        assert_eq!(span[..8], [7, 7, 7, 7, 8, 8, 8, 8]);
    }

    #[test]
    fn broken_files_have_their_own_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("core");
        let open = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            Vmcore::open(&path, Access::Mmap).unwrap_err().to_string()
        };
        assert_eq!(open(b""), "the vmcore is not usable");
        assert_eq!(open(&vec![0; 4096]), "the vmcore is not usable");
        let whole = CoreFile::new().memory(0x1000, 3, 1).bytes();
        assert!(open(&whole[..100]).contains("holds no memory"));
        assert!(matches!(Vmcore::open(dir.path(), Access::Mmap), Err(VmcoreError::NotAFile(_))));
        assert!(matches!(Vmcore::open(&dir.path().join("x"), Access::Mmap), Err(VmcoreError::Open { .. })));
    }

    #[test]
    fn a_part_of_a_partial_page_reads_as_the_page_does() {
        let core = open(&CoreFile::new().segment(0x1800, &[7; 16]).segment(0x2ff0, &[9; 16]), Access::Pread);
        let zeros = [0; 4];
        for (addr, expected) in [(0x1000, zeros), (0x1c00, zeros), (0x180e, [7, 7, 0, 0]), (0x1ffe, zeros)] {
            let mut part = [0xff; 4];
            core.read_exact_at(PhysAddr(addr), &mut part).unwrap();
            assert_eq!(part, expected, "{addr:#x}");
        }
        let over_the_end = core.read_exact_at(PhysAddr(0x2ffe), &mut [0; 4]);
        assert!(matches!(over_the_end, Err(ReadError::Hole(PhysAddr(0x3000)))), "{over_the_end:?}");
    }

    #[test]
    fn a_truncated_core_keeps_what_is_there() {
        let core = CoreFile::new().memory(0x1000, 8, 1).memory(0x10_0000, 8, 2);
        let mut bytes = core.bytes();
        bytes.truncate(bytes.len() - 10 * PAGE);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let core = Vmcore::open(file.path(), Access::Mmap).unwrap();
        assert_eq!(core.ranges().iter().map(|r| r.pages()).sum::<u64>(), 6);
        assert_eq!(core.anomalies().len(), 2);
    }

    #[test]
    fn notes_are_found_and_device_dumps_bounded() {
        let core = CoreFile::new()
            .memory(0x1000, 1, 1)
            .note("CORE", 1, &[1; 336])
            .note("CORE", 1, &[2; 336])
            .note("LINUX", 0x700, &[3; 1000])
            .note("VMCOREINFO", 0, b"OSRELEASE=6.1-test\nPAGESIZE=4096\n");
        let core = open(&core, Access::Pread);
        assert_eq!(core.notes().cpus(), 2);
        assert_eq!(core.info().get("OSRELEASE"), Some("6.1-test"));
        assert_eq!(core.notes().notes.len(), 4);
        assert_eq!(core.anomalies(), &[]);
    }

    #[test]
    fn a_note_past_the_end_of_the_file_is_told_and_not_listed() {
        let mut bytes = CoreFile::new().memory(0x1000, 1, 1).note("CORE", 1, &[1; 336]).bytes();
        let (note_segment, note) = (64, 4096);
        bytes[note_segment + 32..note_segment + 40].copy_from_slice(&u64::MAX.to_le_bytes()); // p_filesz
        bytes[note + 4..note + 8].copy_from_slice(&u32::MAX.to_le_bytes()); // n_descsz
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let core = Vmcore::open(file.path(), Access::Pread).unwrap();
        assert!(core.notes().is_empty());
        assert!(matches!(core.anomalies(), [Anomaly::NotesPastEnd { offset: 4096, .. }]));
    }

    #[test]
    fn more_than_65535_segments() {
        let mut core = CoreFile::new();
        for index in 0..66_000_u64 {
            core = core.segment(0x1_0000 + index * 0x2000, &[5]);
        }
        let core = open(&core, Access::Pread);
        assert_eq!(core.ranges().len(), 66_000);
        assert_eq!(core.anomalies(), &[]);
    }
}
