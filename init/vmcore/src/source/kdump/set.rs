//! Opening a dump: one file, or the files of a split one, each of which has the headers and bitmaps
//! of the whole and descriptors and data of its own pages.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::format::elf::{Segment, SegmentKind};
use crate::format::kdump::{self, Header, KdumpError, Layout, PageDesc};
use crate::format::vmcoreinfo::{self, VmcoreInfo};
use crate::source::dumpfile::DumpFile;
use crate::source::extents::Anomaly;
use crate::source::flattened::FlattenedOpenError;
use crate::source::kdump::Kdump;
use crate::source::kdump::bitmap;
use crate::source::notes::NoteIndex;
use base::addr::{Pfn, PfnRange, PhysAddr, VirtAddr};
use base::read_at::{ReadAt, read_up_to};

/// Bytes of bitmaps that are believed for each byte that a flattened file has. makedumpfile writes
/// bitmaps whole; holes are for writers that skip their zeros.
const MAX_HOLES: u64 = 1024;

/// Which file cannot be read as a dump, and why.
#[derive(Debug, thiserror::Error)]
#[error("{path}")]
pub struct KdumpOpenError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    #[source]
    pub cause: KdumpFault,
}

/// Why a file cannot be read as a dump.
#[derive(Debug, thiserror::Error)]
pub enum KdumpFault {
    /// A part cannot be read.
    #[error("reading {what} of the dump")]
    Read {
        /// Which part.
        what: &'static str,
        /// Cause.
        source: io::Error,
    },
    /// It cannot be opened, or is flattened and its pieces make no sense.
    #[error(transparent)]
    File(#[from] FlattenedOpenError),
    /// Its headers make no sense.
    #[error("the dump is not usable")]
    Format(#[from] KdumpError),
    /// Flattened, and what it unpacks to is an ELF core (`makedumpfile -E -F`).
    #[error("a flattened ELF core, which is not read as it is: unpack it with `makedumpfile -R`")]
    FlattenedElf,
    /// Several files were given, and this one is a dump of its own.
    #[error("not a part of a split dump, but a whole one: open it alone")]
    NotSplit,
    /// A part of another dump.
    #[error("its {what} is not that of {other}: a part of another dump?")]
    OtherDump {
        /// What differs.
        what: &'static str,
        /// The part that it was compared with.
        other: PathBuf,
    },
    /// The numbers of its first and last page are reversed.
    #[error("a part with the pages from {0} up to {1}")]
    Range(Pfn, Pfn),
    /// A page is in two parts.
    #[error("pages from {from} on are in {other} too")]
    Overlap {
        /// First page that both have.
        from: Pfn,
        /// The other part.
        other: PathBuf,
    },
}

/// A file of the dump.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) path: PathBuf,
    pub(super) file: DumpFile,
    pub(super) layout: Layout,
    /// First page whose descriptor is in this file.
    pub(super) start: Pfn,
    /// First page after the last; the highest number there is if the dump is in one file.
    pub(super) end: Pfn,
    /// Kept pages before `start`: the rank of the first descriptor.
    pub(super) first_rank: u64,
    /// Descriptors in this file.
    pub(super) descs: u64,
}

impl Part {
    /// The descriptor, or an empty one, as lost pages have it, if the file does not have the data.
    pub(super) fn as_far_as_there(&self, desc: PageDesc) -> PageDesc {
        if self.file.has(desc.offset, u64::from(desc.size)) { desc } else { PageDesc::default() }
    }

    /// Reads descriptors. What was cut off is zero: a dump that was cut short has lost these pages,
    /// as one that says so itself has.
    pub(super) fn read_descs(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        let have = self.file.read_front(out, offset)?;
        let whole = have.saturating_sub(have.checked_rem(kdump::DESC_LEN).unwrap_or(0));
        out.get_mut(whole..).unwrap_or_default().fill(0);
        Ok(())
    }
}

/// A part and what its headers say.
struct Opened {
    part: Part,
    header: Header,
    is_split: bool,
    info: Vec<u8>,
}

pub(super) fn open(paths: &[&Path]) -> Result<Kdump, KdumpOpenError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |cause| KdumpOpenError { path, cause }
    };
    let mut opened = Vec::new();
    for path in paths {
        let next = DumpFile::open(path).map_err(KdumpFault::from);
        let next = next.and_then(|file| open_part(path, file)).map_err(at(path))?;
        if paths.len() > 1 && !next.is_split {
            return Err(at(path)(KdumpFault::NotSplit));
        }
        if let Some(first) = opened.first() {
            belongs(first, &next).map_err(at(path))?;
        }
        opened.push(next);
    }
    opened.sort_by_key(|one: &Opened| (one.part.start, one.part.end));
    for pair in opened.windows(2) {
        if let [a, b] = pair
            && b.part.start < a.part.end
        {
            let fault = KdumpFault::Overlap { from: b.part.start, other: a.part.path.clone() };
            return Err(at(&b.part.path)(fault));
        }
    }
    let incomplete = opened.iter().any(|one| one.header.incomplete);
    let mut opened = opened.into_iter();
    let first = opened.next().ok_or_else(|| {
        let source = io::Error::new(io::ErrorKind::InvalidInput, "no file was given");
        at(Path::new(""))(KdumpFault::Read { what: "file", source })
    })?;
    let path = first.part.path.clone();
    let parts = opened.map(|one| one.part).collect();
    let first = Opened { header: Header { incomplete, ..first.header }, ..first };
    assemble(first, parts).map_err(|source| at(&path)(KdumpFault::Read { what: "bitmaps", source }))
}

pub(super) fn open_parts(paths: &[&Path]) -> Result<Kdump, KdumpOpenError> {
    let path = paths.first().copied().unwrap_or(Path::new(""));
    let at = |cause| KdumpOpenError { path: path.to_owned(), cause };
    let file = DumpFile::open_parts(paths).map_err(KdumpFault::from).map_err(at)?;
    let opened = open_part(path, file).map_err(at)?;
    assemble(opened, Vec::new()).map_err(|source| at(KdumpFault::Read { what: "bitmaps", source }))
}

fn open_part(path: &Path, mut file: DumpFile) -> Result<Opened, KdumpFault> {
    let read = |what| move |source| KdumpFault::Read { what, source };
    let block0 = read_up_to(&file, 0, 65536).map_err(read("header"))?;
    if file.flattened().is_some() && block0.starts_with(b"\x7fELF") {
        return Err(KdumpFault::FlattenedElf);
    }
    if !kdump::has_signature(&block0) {
        return Err(KdumpError::Signature.into());
    }
    let page_size = kdump::block_size(&block0)?;
    let mut sub = [0; kdump::SUB_HEADER_LEN];
    file.read_whole(&mut sub, page_size.bytes()).map_err(read("sub header"))?;
    let (layout, header) = kdump::parse_headers(&block0, &sub)?;
    file.trust_holes(0, layout.descs_offset());
    let info = file.promised(header.vmcoreinfo, vmcoreinfo::MAX_LEN).map_err(read("VMCOREINFO"))?;
    let stored = file.stored().saturating_mul(MAX_HOLES);
    if layout.descs_offset() > file.len() || layout.bitmap_bytes() > stored {
        return Err(KdumpError::Truncated.into());
    }
    let split = kdump::split_range(&sub);
    let (start, end) = split.unwrap_or((Pfn(0), Pfn(u64::MAX)));
    if start > end {
        return Err(KdumpFault::Range(start, end));
    }
    let part = Part { path: path.to_owned(), file, layout, start, end, first_rank: 0, descs: 0 };
    Ok(Opened { part, header, is_split: split.is_some(), info })
}

/// Whether two parts are of one dump. A part that was cut short says INCOMPLETE for itself.
fn belongs(first: &Opened, next: &Opened) -> Result<(), KdumpFault> {
    let header = |one: &Opened| Header { incomplete: false, ..one.header.clone() };
    let differs = if first.part.layout != next.part.layout {
        "layout"
    } else if header(first) != header(next) {
        "header"
    } else if first.info != next.info {
        "VMCOREINFO"
    } else {
        return Ok(());
    };
    Err(KdumpFault::OtherDump { what: differs, other: first.part.path.clone() })
}

/// Puts sorted parts together.
fn assemble(first: Opened, others: Vec<Part>) -> io::Result<Kdump> {
    let Opened { part, header, is_split, info } = first;
    let layout = part.layout;
    let mut anomalies = Vec::new();
    let notes = {
        let (offset, filesz) = header.notes;
        let (paddr, vaddr) = (PhysAddr(0), VirtAddr(0));
        let segment = Segment { kind: SegmentKind::Note, offset, paddr, vaddr, filesz, memsz: filesz };
        let segments = if filesz > 0 { vec![segment] } else { Vec::new() };
        NoteIndex::read(&part.file, part.file.len(), &segments, &mut anomalies)
    };
    let bitmaps = bitmap::summarize(&part.file, &layout)?;
    let mut part = part;
    if let Some(data) = layout.data_offset(bitmaps.kept) {
        part.file.trust_holes(layout.descs_offset(), data);
    }
    let parts: Vec<Part> = core::iter::once(part).chain(others).collect();
    for stream in parts.iter().filter_map(|part| part.file.flattened()).filter(|file| !file.is_complete()) {
        anomalies.push(Anomaly::UnfinishedStream { bytes: stream.stored() });
    }
    if is_split {
        let ends = parts.iter().map(|part| part.end);
        let starts = parts.iter().map(|part| part.start).skip(1).chain([Pfn(layout.max_mapnr)]);
        let head = parts.first().map(|part| (Pfn(0), part.start));
        let gaps =
            head.into_iter().chain(ends.zip(starts)).filter_map(|(end, start)| PfnRange::new(end, start));
        anomalies
            .extend(gaps.map(|gap| Anomaly::MissingPart { start_pfn: gap.start().0, end_pfn: gap.end().0 }));
    }
    let info = VmcoreInfo::parse(&info);
    let mut dump =
        Kdump { parts, is_split, layout, header, info, notes, anomalies, bitmaps, idle: Mutex::default() };
    dump.count_descs()?;
    Ok(dump)
}
