//! Where a format puts pages, and the headers that say so. Bytes and numbers only;
//! [`super::segments`] writes them.
//!
//! Headers say what is in the file already and no more: they are made again as the file grows.

use crate::format::{elf, lime};
use base::addr::{PageSize, Pfn, PfnRange, PhysAddr, VirtAddr, to_u64};

/// How a format places pages in the file.
#[derive(Debug)]
pub(super) enum Places {
    /// A segment for each run.
    Elf(ElfPlaces),
    /// A header in front of each run.
    Lime(LimePlaces),
    /// At its physical address.
    Raw(PageSize),
}

impl Places {
    /// Offset of the data of `pfn`; pages come in ascending order. `None` for a page without a
    /// place.
    pub(super) fn place(&mut self, pfn: Pfn) -> Option<u64> {
        match self {
            Self::Elf(places) => places.place(pfn),
            Self::Lime(places) => places.place(pfn),
            Self::Raw(page_size) => page_size.addr_of(pfn).map(|addr| addr.0),
        }
    }

    /// The headers that change when the pages below `end` are in the file, with their offsets, in
    /// the order in which they are to be written.
    pub(super) fn headers(&self, end: Pfn) -> Vec<(u64, Vec<u8>)> {
        match self {
            Self::Elf(places) => places.headers(end),
            Self::Lime(places) => places.headers(end),
            Self::Raw(_) => Vec::new(),
        }
    }

    /// Takes note that the headers for the pages below `end` are durable and need not be made
    /// again.
    pub(super) fn confirm(&mut self, end: Pfn) {
        match self {
            Self::Elf(places) => {
                places.open = places.loads.partition_point(|load| load.pages.end() <= end);
            }
            Self::Lime(places) => {
                let growing = places.open.pop();
                places.open.retain(|load| load.pages.end() > end);
                places.open.extend(growing);
            }
            Self::Raw(_) => (),
        }
    }

    /// Where the header goes that stands in front of `pfn`, the last page that was placed.
    pub(super) fn header_of_new(&self, pfn: Pfn) -> Option<u64> {
        let Self::Lime(places) = self else { return None };
        places.open.last().filter(|load| load.pages.start() == pfn).map(|load| load.at)
    }

    /// Whether a page that cannot be read is left out: nothing has been promised about it.
    pub(super) fn leaves_out_unreadable(&self) -> bool {
        matches!(self, Self::Lime(_))
    }
}

/// Pages with the same place in the file and, in ELF, the same virtual address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Load {
    pages: PfnRange,
    /// Offset of the data in ELF, of the header in LiME.
    at: u64,
    vaddr: VirtAddr,
}

/// An ELF core.
#[derive(Debug)]
pub(super) struct ElfPlaces {
    page_size: PageSize,
    machine: u16,
    notes: (u64, u64),
    /// Sorted. What the kernel maps twice has two, one behind the other, with the same pages.
    loads: Vec<Load>,
    /// The first whose header is not durable and final.
    open: usize,
    data: u64,
}

impl ElfPlaces {
    /// Places for `runs`, which are sorted. `mappings` are virtual address, physical address and
    /// length of what the kernel maps.
    pub(super) fn new(
        page_size: PageSize,
        machine: u16,
        notes_len: u64,
        runs: &[PfnRange],
        mappings: &[(VirtAddr, PhysAddr, u64)],
    ) -> Self {
        let mut loads = Vec::with_capacity(runs.len());
        for &run in runs {
            push_loads(page_size, run, mappings, &mut loads);
        }
        let notes_at = to_u64(elf::head_len(loads.len().saturating_add(1)));
        let notes_end = notes_at.saturating_add(notes_len);
        let data = notes_end.checked_next_multiple_of(page_size.bytes()).unwrap_or(notes_end);
        let (mut at, mut last) = (data, None);
        for load in &mut loads {
            if let Some((before, pages)) = last.filter(|&(_, pages)| pages == load.pages) {
                load.at = before;
                last = Some((before, pages));
                continue;
            }
            load.at = at;
            last = Some((at, load.pages));
            at = at.saturating_add(load.pages.pages().saturating_mul(page_size.bytes()));
        }
        Self { page_size, machine, notes: (notes_at, notes_len), loads, open: 0, data }
    }

    /// Program headers, that of the notes among them.
    pub(super) fn segments(&self) -> usize {
        self.loads.len().saturating_add(1)
    }

    /// Offset of the notes.
    pub(super) fn notes_at(&self) -> u64 {
        self.notes.0
    }

    /// Where the data begins.
    pub(super) fn data_at(&self) -> u64 {
        self.data
    }

    fn place(&self, pfn: Pfn) -> Option<u64> {
        let index = self.loads.partition_point(|load| load.pages.end() <= pfn);
        let load = self.loads.get(index).filter(|load| load.pages.contains(pfn))?;
        let ahead = pfn.0.saturating_sub(load.pages.start().0).saturating_mul(self.page_size.bytes());
        Some(load.at.saturating_add(ahead))
    }

    /// First the program headers, then the file header, which counts those that hold.
    fn headers(&self, end: Pfn) -> Vec<(u64, Vec<u8>)> {
        let capacity = self.segments();
        let mut table = Vec::new();
        let from = self.open;
        let mut count = from;
        for load in self.loads.get(from..).unwrap_or_default() {
            let Some(pages) = PfnRange::new(load.pages.start(), load.pages.end().min(end)) else { break };
            let paddr = self.page_size.addr_of(pages.start()).unwrap_or_default();
            let len = pages.pages().saturating_mul(self.page_size.bytes());
            table.extend(elf::emit_load_segment(load.at, load.vaddr, paddr, len));
            count = count.saturating_add(1);
        }
        let notes = elf::emit_note_segment(self.notes.0, self.notes.1).to_vec();
        let at = |index: usize| to_u64(elf::table_at(capacity).saturating_add(elf::table_len(to_u64(index))));
        let head = elf::emit_header(self.machine, count.saturating_add(1), capacity);
        vec![(at(0), notes), (at(from.saturating_add(1)), table), (0, head)]
    }
}

/// Cuts a run where another mapping begins or ends, and appends a load per piece and mapping of it.
fn push_loads(
    page_size: PageSize,
    run: PfnRange,
    mappings: &[(VirtAddr, PhysAddr, u64)],
    loads: &mut Vec<Load>,
) {
    let pages = |phys: PhysAddr, len: u64| {
        let end = phys.checked_add(len).unwrap_or(PhysAddr(u64::MAX));
        // Whole pages: of what is mapped in part, the address would be wrong for the rest.
        PfnRange::new(page_size.pfn_end_of(phys), page_size.pfn_of(end))
    };
    let mapped: Vec<(PfnRange, u64)> = mappings
        .iter()
        .filter_map(|&(virt, phys, len)| {
            let part = pages(phys, len)?.intersect(run)?;
            Some((part, virt.0.wrapping_sub(phys.0)))
        })
        .collect();
    let mut cuts: Vec<Pfn> = mapped.iter().flat_map(|(part, _)| [part.start(), part.end()]).collect();
    cuts.extend([run.start(), run.end()]);
    cuts.sort_unstable();
    cuts.dedup();
    let mut pieces: Vec<(PfnRange, Vec<u64>)> = Vec::new();
    for (&from, &to) in cuts.iter().zip(cuts.iter().skip(1)) {
        let Some(piece) = PfnRange::new(from, to) else { continue };
        let mut ahead: Vec<u64> =
            mapped.iter().filter(|(part, _)| part.contains(from)).map(|&(_, ahead)| ahead).collect();
        ahead.sort_unstable();
        ahead.dedup();
        match pieces.last_mut() {
            Some((last, same)) if *same == ahead => *last = PfnRange::new(last.start(), to).unwrap_or(*last),
            _ => pieces.push((piece, ahead)),
        }
    }
    for (pages, ahead) in pieces {
        let paddr = page_size.addr_of(pages.start()).unwrap_or_default();
        let load = |vaddr| Load { pages, at: 0, vaddr: VirtAddr(vaddr) };
        if ahead.is_empty() {
            loads.push(load(0));
        }
        loads.extend(ahead.iter().map(|ahead| load(paddr.0.wrapping_add(*ahead))));
    }
}

/// A LiME file.
#[derive(Debug)]
pub(super) struct LimePlaces {
    page_size: PageSize,
    /// Those whose headers do not say all yet; the last one is still growing.
    open: Vec<Load>,
    /// End of the data.
    end: u64,
}

impl LimePlaces {
    /// A file without pages.
    pub(super) fn new(page_size: PageSize) -> Self {
        Self { page_size, open: Vec::new(), end: 0 }
    }

    fn place(&mut self, pfn: Pfn) -> Option<u64> {
        let next = pfn.saturating_add(1);
        if let Some(load) = self.open.last_mut().filter(|load| load.pages.end() == pfn) {
            load.pages = PfnRange::new(load.pages.start(), next)?;
        } else {
            let pages = PfnRange::new(pfn, next)?;
            self.open.push(Load { pages, at: self.end, vaddr: VirtAddr(0) });
            self.end = self.end.saturating_add(to_u64(lime::HEADER_LEN));
        }
        let at = self.end;
        self.end = at.saturating_add(self.page_size.bytes());
        Some(at)
    }

    fn headers(&self, end: Pfn) -> Vec<(u64, Vec<u8>)> {
        let addr = |pfn| self.page_size.addr_of(pfn).map_or(u64::MAX, |addr| addr.0);
        let header = |load: &Load| {
            let pages = PfnRange::new(load.pages.start(), load.pages.end().min(end))?;
            Some((load.at, lime::emit(addr(pages.start()), addr(pages.end()).saturating_sub(1)).to_vec()))
        };
        self.open.iter().filter_map(header).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: PageSize = PageSize::FOUR_KIB;

    fn run(start: u64, end: u64) -> PfnRange {
        PfnRange::new(Pfn(start), Pfn(end)).unwrap()
    }

    fn loads(runs: &[PfnRange], mappings: &[(VirtAddr, PhysAddr, u64)]) -> Vec<(u64, u64, u64, u64)> {
        let places = ElfPlaces::new(PAGE, 62, 0, runs, mappings);
        let load = |load: &Load| {
            let offset = (load.at - places.data_at()) >> 12;
            (load.pages.start().0, load.pages.end().0, load.vaddr.0, offset)
        };
        places.loads.iter().map(load).collect()
    }

    #[test]
    fn kernel_text_has_both_of_its_addresses() {
        let (text, direct) = (0xffff_ffff_8100_0000, 0xffff_8880_0000_0000);
        let mappings =
            [(VirtAddr(text), PhysAddr(0x10_0000), 0x4000), (VirtAddr(direct), PhysAddr(0), 0x20_0000)];
        assert_eq!(
            loads(&[run(0xfe, 0x106), run(0x110, 0x112)], &mappings),
            [
                (0xfe, 0x100, direct + 0xf_e000, 0),
                (0x100, 0x104, direct + 0x10_0000, 2),
                (0x100, 0x104, text, 2),
                (0x104, 0x106, direct + 0x10_4000, 6),
                (0x110, 0x112, direct + 0x11_0000, 8),
            ]
        );
        assert_eq!(loads(&[run(0x101, 0x102)], &mappings)[1], (0x101, 0x102, text + 0x1000, 0));
    }

    #[test]
    fn one_linear_mapping_in_parts_is_one_segment() {
        let parts =
            [(VirtAddr(0x8000_0000), PhysAddr(0), 0x2000), (VirtAddr(0x8000_2000), PhysAddr(0x2000), 0x3000)];
        assert_eq!(loads(&[run(1, 5)], &parts), [(1, 5, 0x8000_1000, 0)]);
        assert_eq!(loads(&[run(1, 5)], &[]), [(1, 5, 0, 0)]);
        // The last page is mapped in part, and wild lengths do no harm.
        let wild =
            [(VirtAddr(0x8000_0000), PhysAddr(0), 0x2800), (VirtAddr(7), PhysAddr(u64::MAX), u64::MAX)];
        assert_eq!(loads(&[run(1, 5)], &wild), [(1, 2, 0x8000_1000, 0), (2, 5, 0, 1)]);
    }

    #[test]
    fn headers_hold_what_is_there() {
        let runs = [run(1, 3), run(5, 9)];
        let mut places = Places::Elf(ElfPlaces::new(PAGE, 62, 0, &runs, &[]));
        let mut file = vec![0; 4096];
        let mut sizes = |end, confirmed| {
            for (at, bytes) in places.headers(Pfn(end)) {
                let at = usize::try_from(at).unwrap();
                file[at..at + bytes.len()].copy_from_slice(&bytes);
            }
            let header = elf::Header::parse(&file).unwrap();
            let elf::PhNum::Direct(count) = header.phnum else { panic!("{header:?}") };
            let table = usize::try_from(header.phoff).unwrap();
            let loads = elf::parse_segments(&file[table..table + elf::table_len(count)]).unwrap();
            places.confirm(Pfn(confirmed));
            loads.iter().skip(1).map(|load| load.filesz >> 12).collect::<Vec<_>>()
        };
        assert_eq!(sizes(0, 0), [0_u64; 0]);
        assert_eq!(sizes(2, 0), [1]);
        assert_eq!(sizes(4, 2), [2]);
        assert_eq!(sizes(6, 4), [2, 1]);
        assert_eq!(sizes(9, 6), [2, 4]);
        assert_eq!(sizes(9, 9), [2, 4]);
        assert_eq!(sizes(3, 9), [2, 4], "what is durable stays");
    }

    #[test]
    fn lime_ranges_grow() {
        let mut places = Places::Lime(LimePlaces::new(PAGE));
        assert_eq!([1, 2].map(|pfn| places.place(Pfn(pfn))), [Some(32), Some(4128)]);
        assert_eq!([1, 2].map(|pfn| places.header_of_new(Pfn(pfn))), [Some(0), None]);
        assert_eq!(places.headers(Pfn(2)), [(0, lime::emit(0x1000, 0x1fff).to_vec())]);
        assert_eq!([3, 7].map(|pfn| places.place(Pfn(pfn))), [Some(8224), Some(12_352)]);
        let both = [(0, lime::emit(0x1000, 0x3fff).to_vec()), (12_320, lime::emit(0x7000, 0x7fff).to_vec())];
        assert_eq!(places.headers(Pfn(8)), both);
        assert_eq!(places.headers(Pfn(4))[..], both[..1]);
        places.confirm(Pfn(8));
        assert_eq!(places.headers(Pfn(8)), both[1..]);
    }
}
