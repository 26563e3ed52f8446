//! The memory of a machine of any size, computed when it is read and held nowhere: the worst case
//! for a dump.
//!
//! Outside the kernel's own memory every second page is the kernel's and every other one is
//! anonymous or free, so that no bitmap has a run. Struct pages, page tables and memory sections
//! are those of Linux 6.12 on x86_64.
//!
//! ```text
//! 0 ............ kernel image, page tables, memory sections: all the kernel's
//! 128 MiB ...... kernel, user, kernel, free, kernel, user, ...
//! 63/64 of it .. struct pages, mapped in 2 MiB pages: all the kernel's
//! ```

use std::io;

use anyhow::{Result, ensure};
use base::addr::{PageSize, Pfn, PfnRange, PhysAddr, VirtAddr, to_u64, to_usize};
use vmcore::format::vmcoreinfo::VmcoreInfo;
use vmcore::source::{Anomaly, Core, NoteIndex, PageReader, PhysicalMemory, ReadError};

use super::content::Content;

/// `__START_KERNEL_map`: all of the first GiB is mapped there.
const IMAGE: u64 = 0xffff_ffff_8000_0000;
const VMEMMAP: u64 = 0xffff_ea00_0000_0000;
/// Bytes of a memory section, whose struct pages fill a huge page.
const SECTION: u64 = 128 << 20;
const HUGE: u64 = 2 << 20;
/// Pages that a page of struct pages describes: these have 64 bytes.
const PAGES_PER_PAGE: u64 = 64;

// Physical addresses.
const TEXT: u64 = 0x100_0000;
const TOP: u64 = 0x120_0000;
const UTS: u64 = 0x120_1000;
const ROOTS: u64 = 0x130_0000;
const IMAGE_PUD: u64 = 0x131_0000;
const IMAGE_PMD: u64 = 0x131_1000;
const VMEMMAP_PUD: u64 = 0x131_2000;
const SECTIONS: u64 = 0x140_0000;
const VMEMMAP_PMD: u64 = 0x200_0000;
/// The end of the kernel's own memory.
const LOW: u64 = SECTION;

/// Roots of memory sections, 256 in a page: for 64 TiB.
const SECTION_ROOTS: u64 = 2048;
/// One table of the third level maps 512 GiB of struct pages.
const MAX_GIB: u64 = 32 << 10;
const TABLE: u64 = 0x3;
const WRITABLE_PAGE: u64 = 0x83;
const READ_ONLY_PAGE: u64 = 0x81;
/// Flags of a section: present, with struct pages, online, early, accessible.
const SECTION_FLAGS: u64 = 0x1f;

const ANON_FLAGS: u64 = 1 << 5 | 1 << 17; // PG_lru, PG_swapbacked
const BUDDY: u32 = 0xf000_0000;
/// Bytes of struct pages that are copied at a time; they repeat in it.
const BLOCK: usize = 8192;

/// The machine.
#[derive(Debug)]
pub struct Machine {
    bytes: u64,
    /// Where the struct pages begin.
    structs: u64,
    ranges: [PfnRange; 1],
    info: VmcoreInfo,
    notes: NoteIndex,
    content: Content,
    kernel_structs: Vec<u8>,
    mixed_structs: Vec<u8>,
}

impl Machine {
    /// A machine with `gib` GiB of memory.
    pub fn new(gib: u64, content: Content) -> Result<Self> {
        ensure!((2..=MAX_GIB).contains(&gib), "{gib} GiB: there are machines of 2 to {MAX_GIB} GiB");
        let bytes = gib << 30;
        let structs = bytes.saturating_sub(bytes / PAGES_PER_PAGE);
        let all = PfnRange::new(Pfn(0), Pfn(bytes / 4096));
        let kernel = || page(0, 0, u32::MAX, 1);
        let user = page(ANON_FLAGS, 0xffff_8881_0000_0001, 0, 1);
        let free = page(0, 0, BUDDY, 0);
        Ok(Self {
            bytes,
            structs,
            ranges: all.map(|all| [all]).ok_or_else(|| anyhow::anyhow!("no memory"))?,
            info: VmcoreInfo::parse(vmcoreinfo().as_bytes()),
            notes: NoteIndex::default(),
            content,
            kernel_structs: repeat(&[kernel()]),
            mixed_structs: repeat(&[kernel(), user, kernel(), free]),
        })
    }

    fn fill(&self, addr: u64, out: &mut [u8]) -> Result<(), ReadError> {
        let end = addr.checked_add(to_u64(out.len())).filter(|&end| end <= self.bytes);
        let (mut at, mut rest) = (addr, out);
        end.ok_or(ReadError::Hole(PhysAddr(addr)))?;
        while !rest.is_empty() {
            let (unit, len) = if at >= self.structs { (BLOCK, to_u64(BLOCK)) } else { (4096, 4096) };
            let ahead = to_usize(at & len.saturating_sub(1));
            let (part, behind) = rest.split_at_mut(unit.saturating_sub(ahead).min(rest.len()));
            if at >= self.structs {
                let block = self.structs_at(at);
                part.copy_from_slice(block.get(ahead..ahead.saturating_add(part.len())).unwrap_or_default());
            } else if at >= LOW {
                self.content.fill(at / 4096, ahead, part);
            } else {
                self.low(at, part);
            }
            at = at.saturating_add(to_u64(part.len()));
            rest = behind;
        }
        Ok(())
    }

    /// The block of struct pages that holds the address: no block describes memory of both kinds.
    fn structs_at(&self, addr: u64) -> &[u8] {
        let described = addr.saturating_sub(self.structs).saturating_mul(PAGES_PER_PAGE);
        let kernel = described < LOW || described >= self.structs;
        if kernel { &self.kernel_structs } else { &self.mixed_structs }
    }

    /// The kernel's own memory, a word at a time.
    fn low(&self, addr: u64, out: &mut [u8]) {
        let (mut at, mut rest) = (addr, out);
        while !rest.is_empty() {
            let word = self.word(at & !7).to_le_bytes();
            let word = word.get(to_usize(at & 7)..).unwrap_or_default();
            let (part, behind) = rest.split_at_mut(word.len().min(rest.len()));
            part.copy_from_slice(word.get(..part.len()).unwrap_or_default());
            at = at.saturating_add(to_u64(part.len()));
            rest = behind;
        }
    }

    fn word(&self, at: u64) -> u64 {
        let index = at >> 3 & 0x1ff;
        // The number of the word in a table that begins at `base` and has `count` words.
        let of = |base: u64, count: u64| at.checked_sub(base).map(|ahead| ahead / 8).filter(|&n| n < count);
        let huge_pages = self.bytes.saturating_sub(self.structs).div_ceil(HUGE);
        if let Some(number) = of(VMEMMAP_PMD, huge_pages) {
            return self.structs.saturating_add(number.saturating_mul(HUGE)) | WRITABLE_PAGE;
        }
        if let Some(number) = of(SECTIONS, SECTION_ROOTS.saturating_mul(512)) {
            let exists = number / 2 < self.bytes / SECTION;
            return if exists && number & 1 == 0 { VMEMMAP | SECTION_FLAGS } else { 0 };
        }
        if let Some(number) = of(ROOTS, SECTION_ROOTS) {
            return IMAGE.saturating_add(SECTIONS).saturating_add(number.saturating_mul(4096));
        }
        match at & !0xfff {
            TOP if index == 0x1ff => IMAGE_PUD | TABLE,
            TOP if index == VMEMMAP >> 39 & 0x1ff => VMEMMAP_PUD | TABLE,
            IMAGE_PUD if index == 0x1fe => IMAGE_PMD | TABLE,
            IMAGE_PMD if index == TEXT / HUGE => TEXT | READ_ONLY_PAGE,
            IMAGE_PMD => index.saturating_mul(HUGE) | WRITABLE_PAGE,
            VMEMMAP_PUD if index < huge_pages.div_ceil(512) => {
                VMEMMAP_PMD.saturating_add(index.saturating_mul(4096)) | TABLE
            }
            UTS => uts_word(at & 0xfff),
            _ => 0,
        }
    }
}

/// `init_uts_ns.name`: fields of 65 bytes.
fn uts_word(at: u64) -> u64 {
    const FIELDS: [&str; 6] = ["Linux", "synthetic", "6.12.0-synthetic", "#1", "x86_64", "(none)"];
    let byte = |at: u64| {
        let field = FIELDS.get(to_usize(at / 65))?;
        field.as_bytes().get(to_usize(at % 65)).copied()
    };
    let mut word = [0; 8];
    for (out, ahead) in word.iter_mut().zip(0..) {
        *out = byte(at.saturating_add(ahead)).unwrap_or(0);
    }
    u64::from_le_bytes(word)
}

/// A struct page: flags at 0, mapping at 24, private at 40, `_mapcount` at 48, `_refcount` at 52.
fn page(flags: u64, mapping: u64, mapcount: u32, count: u32) -> Vec<u8> {
    let words = [flags, 0, 0, mapping, 0, 0, u64::from(count) << 32 | u64::from(mapcount), 0];
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A block of these struct pages again and again.
fn repeat(pages: &[Vec<u8>]) -> Vec<u8> {
    pages.concat().iter().copied().cycle().take(BLOCK).collect()
}

fn vmcoreinfo() -> String {
    let at = |phys: u64| IMAGE.saturating_add(phys);
    let keys = "OSRELEASE=6.12.0-synthetic\nPAGESIZE=4096\nCRASHTIME=1763900000\nNUMBER(phys_base)=0\n\
         NUMBER(pgtable_l5_enabled)=0\nLENGTH(mem_section)=2048\nSIZE(mem_section)=16\n\
         OFFSET(mem_section.section_mem_map)=0\nNUMBER(SECTION_SIZE_BITS)=27\nNUMBER(MAX_PHYSMEM_BITS)=46\n\
         OFFSET(uts_namespace.name)=0\nSIZE(page)=64\nOFFSET(page.flags)=0\nOFFSET(page.compound_head)=8\n\
         OFFSET(page.mapping)=24\nOFFSET(page.private)=40\nOFFSET(page._mapcount)=48\nOFFSET(page._refcount)=52\n\
         LENGTH(zone.free_area)=11\nNUMBER(PG_lru)=5\nNUMBER(PG_private)=14\nNUMBER(PG_swapcache)=10\n\
         NUMBER(PG_swapbacked)=17\nNUMBER(PG_hwpoison)=21\nNUMBER(PG_head_mask)=64\n\
         NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)=-268435456\nNUMBER(PAGE_OFFLINE_MAPCOUNT_VALUE)=-251658240\n\
         NUMBER(PAGE_HUGETLB_MAPCOUNT_VALUE)=-201326592\nNUMBER(PAGE_SLAB_MAPCOUNT_VALUE)=-184549376\n\
         NUMBER(PAGE_UNACCEPTED_MAPCOUNT_VALUE)=-150994944\n";
    format!(
        "{keys}SYMBOL(_stext)={:x}\nSYMBOL(swapper_pg_dir)={:x}\nSYMBOL(init_uts_ns)={:x}\nSYMBOL(mem_section)={:x}\n",
        at(TEXT),
        at(TOP),
        at(UTS),
        at(ROOTS),
    )
}

impl PhysicalMemory for Machine {
    fn page_size(&self) -> PageSize {
        PageSize::FOUR_KIB
    }

    fn ranges(&self) -> &[PfnRange] {
        &self.ranges
    }

    fn read_exact_at(&self, addr: PhysAddr, out: &mut [u8]) -> Result<(), ReadError> {
        self.fill(addr.0, out)
    }

    fn page_reader(&self) -> Box<dyn PageReader + '_> {
        Box::new(Reader(self))
    }
}

impl Core for Machine {
    fn machine(&self) -> Option<&str> {
        Some("x86_64")
    }

    fn info(&self) -> &VmcoreInfo {
        &self.info
    }

    fn notes(&self) -> &NoteIndex {
        &self.notes
    }

    fn read_note_bytes(&self, _offset: u64, _out: &mut [u8]) -> io::Result<()> {
        Err(io::ErrorKind::UnexpectedEof.into())
    }

    fn mappings(&self) -> &[(VirtAddr, PhysAddr, u64)] {
        &[]
    }

    fn anomalies(&self) -> &[Anomaly] {
        &[]
    }
}

#[derive(Debug)]
struct Reader<'a>(&'a Machine);

impl PageReader for Reader<'_> {
    fn read_exact_at(&mut self, addr: PhysAddr, out: &mut [u8]) -> Result<(), ReadError> {
        self.0.fill(addr.0, out)
    }

    fn read_page(&mut self, pfn: Pfn, page: &mut [u8]) -> Result<(), ReadError> {
        self.0.fill(pfn.0.saturating_mul(4096), page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::args::Args;
    use crate::bench::device::{Device, Kind};
    use crate::bench::job::Job;
    use crate::bench::meter::Meter;

    #[test]
    fn the_filter_takes_it_as_it_is() {
        let machine = Machine::new(2, Content::new(1, 3)).unwrap();
        let mut meter = Meter::start().unwrap();
        let job = Job::from_args(&mut Args::parse(std::iter::empty()).unwrap()).unwrap();
        let dumped = job.dump(&machine, || Device::new(Kind::default(), &mut meter));
        dumped.result.unwrap();
        assert_eq!(dumped.degradations, Vec::<String>::new());
        // All but the first section and the struct pages; these are one page in 64.
        let (pages, structs) = (2_u64 << 18, 2_u64 << 12);
        let mixed = pages - 32768 - structs;
        assert_eq!(dumped.written.pages.excluded, mixed / 2);
        // Tables and sections of the kernel are few.
        let data = structs + mixed / 2 / 16 * 4;
        assert!((data..data + 100).contains(&dumped.written.pages.written), "{:?}", dumped.written.pages);
        assert_eq!(dumped.written.pages.total(), pages);
    }
}
