//! An ELF vmcore: `/proc/vmcore` in a capture kernel, or a copy of one.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::format::elf::{self, ElfError, PhNum, Segment, SegmentKind};
use crate::format::lime;
use crate::format::vmcoreinfo::VmcoreInfo;
use crate::source::extents::{self, Anomaly, Extent};
use crate::source::images;
use crate::source::notes::NoteIndex;
use crate::source::outliers::{self, Limits};
use crate::source::pages::{Access, WindowReader, fill};
use crate::source::{Core, PageReader, PhysicalMemory, ReadError};
use base::addr::{PageSize, PfnRange, PhysAddr, VirtAddr, to_u64};
use base::read_at::{ReadAt, read_up_to};

/// Most program headers that are read; a machine with a million memory ranges does not exist.
const MAX_SEGMENTS: u64 = 1 << 20;
/// Program headers that are decoded at a time.
const SEGMENT_BATCH: u64 = 1024;
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

/// The form of a file of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// An ELF core.
    Elf,
    /// LiME: ranges, each behind a header.
    Lime,
    /// Nothing but memory: the offset is the physical address.
    Raw,
}

impl Form {
    /// The form that the first bytes of a file show; `None` for raw memory, which shows nothing,
    /// and for all else.
    #[must_use]
    pub fn of(head: &[u8]) -> Option<Self> {
        let is_elf = head.starts_with(b"\x7fELF");
        if is_elf { Some(Self::Elf) } else { lime::has_signature(head).then_some(Self::Lime) }
    }

    /// Its name, for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Elf => "ELF64 vmcore",
            Self::Lime => "LiME",
            Self::Raw => "raw memory",
        }
    }
}

/// An open vmcore.
#[derive(Debug)]
pub struct Vmcore {
    file: File,
    len: u64,
    access: Access,
    form: Form,
    is_file: bool,
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
    /// Opens a vmcore and reads its headers and notes. Whatever is wrong with them but leaves
    /// memory to save is listed in [`Core::anomalies`].
    pub fn open(path: &Path, access: Access) -> Result<Self, VmcoreError> {
        Self::open_form(path, access, Form::Elf)
    }

    /// Opens the memory of this machine, as [`Vmcore::open`] does. `memory_end` is the first
    /// address after the memory map that was recorded when the machine was well.
    pub fn open_memory(
        path: &Path,
        access: Access,
        memory_end: Option<PhysAddr>,
    ) -> Result<Self, VmcoreError> {
        let (file, len) = open(path)?;
        Ok(Self { is_file: false, ..Self::from_elf(file, len, access, memory_end)? })
    }

    /// Opens a file of memory in the form that it has, which [`Form::of`] tells but for raw memory.
    pub fn open_form(path: &Path, access: Access, form: Form) -> Result<Self, VmcoreError> {
        let (file, len) = open(path)?;
        let mut anomalies = Vec::new();
        let segments = match form {
            Form::Elf => return Self::from_elf(file, len, access, None),
            Form::Lime => {
                images::lime(&file, len, &mut anomalies).map_err(failed("headers of the ranges"))?
            }
            Form::Raw => images::raw(&file, len),
        };
        let parts = Parts { form, machine: elf::machine_number(Some("x86_64")), segments, claimed: 1 };
        Self::new(file, len, access, parts, NoteIndex::default(), anomalies)
    }

    fn from_elf(
        file: File,
        len: u64,
        access: Access,
        memory_end: Option<PhysAddr>,
    ) -> Result<Self, VmcoreError> {
        let mut anomalies = Vec::new();
        let head = read_up_to(&file, 0, elf::HEADER_LEN).map_err(failed("ELF header"))?;
        let header = elf::Header::parse(&head)?;
        let claimed = match header.phnum {
            PhNum::Direct(count) => count,
            PhNum::InSectionHeader(at) => {
                let bytes =
                    read_up_to(&file, at, elf::SECTION_HEADER_LEN).map_err(failed("section header 0"))?;
                elf::phnum_of_section_header(&bytes)?
            }
        };
        let (mut segments, found) = read_segments(&file, header.phoff, claimed)?;
        if found < claimed {
            anomalies.push(Anomaly::MissingProgramHeaders { claimed, found });
        }
        let notes = NoteIndex::read(&file, len, &segments, &mut anomalies);
        let limits = Limits::new(&notes.vmcoreinfo(&file), memory_end, len);
        outliers::remove(&mut segments, limits, &mut anomalies);
        let parts = Parts { form: Form::Elf, machine: header.machine, segments, claimed };
        Self::new(file, len, access, parts, notes, anomalies)
    }

    fn new(
        file: File,
        len: u64,
        access: Access,
        parts: Parts,
        notes: NoteIndex,
        mut anomalies: Vec<Anomaly>,
    ) -> Result<Self, VmcoreError> {
        let Parts { form, machine, segments, claimed } = parts;
        let (extents, lies) = extents::from_segments(&segments, len);
        anomalies.extend(lies);
        if extents.is_empty() {
            return Err(VmcoreError::NoMemory(claimed));
        }
        let info = notes.vmcoreinfo(&file);
        let page_size = info.page_size().unwrap_or(PageSize::FOUR_KIB);
        let ranges = extents::to_ranges(&extents, page_size);
        let loads = segments.iter().filter(|s| s.kind == SegmentKind::Load && s.vaddr != VirtAddr(0));
        let mappings = loads.map(|s| (s.vaddr, s.paddr, s.memsz)).collect();
        Ok(Self {
            file,
            len,
            access,
            form,
            is_file: true,
            machine,
            page_size,
            extents,
            ranges,
            mappings,
            notes,
            info,
            anomalies,
        })
    }

    /// What kind of file it is.
    #[must_use]
    pub fn form(&self) -> Form {
        self.form
    }
}

/// What the headers of a file say.
struct Parts {
    form: Form,
    machine: u16,
    segments: Vec<Segment>,
    claimed: u64,
}

fn open(path: &Path) -> Result<(File, u64), VmcoreError> {
    let name = || path.display().to_string();
    let file = File::open(path).map_err(|source| VmcoreError::Open { path: name(), source })?;
    let meta = file.metadata().map_err(failed("length"))?;
    if !meta.is_file() {
        return Err(VmcoreError::NotAFile(name()));
    }
    Ok((file, meta.len()))
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
        Box::new(WindowReader::new(&self.file, self.len, &self.extents, self.page_size, self.access))
    }
}

impl Core for Vmcore {
    fn machine(&self) -> Option<&str> {
        elf::machine_name(self.machine)
    }

    fn info(&self) -> &VmcoreInfo {
        &self.info
    }

    fn notes(&self) -> &NoteIndex {
        &self.notes
    }

    fn read_note_bytes(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_whole(out, offset)
    }

    fn mappings(&self) -> &[(VirtAddr, PhysAddr, u64)] {
        &self.mappings
    }

    fn anomalies(&self) -> &[Anomaly] {
        &self.anomalies
    }

    fn is_file(&self) -> bool {
        self.is_file
    }
}

/// Reads program headers in batches, keeps those of memory and notes, and counts all that are in
/// the file.
fn read_segments(file: &File, phoff: u64, count: u64) -> Result<(Vec<Segment>, u64), VmcoreError> {
    let mut segments = Vec::new();
    let mut index = 0;
    let count = count.min(MAX_SEGMENTS);
    while index < count {
        let batch = SEGMENT_BATCH.min(count.saturating_sub(index));
        let Some(offset) = elf::table_offset(phoff, index) else { break };
        let bytes = read_up_to(file, offset, elf::table_len(batch)).map_err(failed("program headers"))?;
        let got = elf::parse_segments(&bytes)?;
        index = index.saturating_add(to_u64(got.len()));
        segments.extend(got.iter().filter(|segment| !matches!(segment.kind, SegmentKind::Other(_))));
        if to_u64(got.len()) < batch {
            break;
        }
    }
    Ok((segments, index))
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> VmcoreError {
    move |source| VmcoreError::Read { what, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::testing::CoreFile;
    use base::addr::Pfn;

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
    fn notes_together_are_bounded() {
        let big = vec![0; 9 << 20];
        let core = CoreFile::new()
            .memory(0x1000, 1, 1)
            .note("CORE", 1, &[1; 336])
            .note("X", 9, &big)
            .note("X", 9, &big);
        let core = open(&core, Access::Pread);
        assert_eq!(core.notes().notes.len(), 2);
        assert!(matches!(core.anomalies(), [Anomaly::NotesLeftOut { bytes }] if *bytes > 9 << 20));
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
