//! ELF vmcores: whatever opens has true ranges, its pages read the same on every road, its notes
//! are in the file, and a file that shrinks under a mapping costs pages, not the process.
//!
//! Input: a control byte, then the file.

use std::path::Path;

use crate::build::{Load, elf_core, note, put};
use crate::{Scratch, check_ranges, chosen_pages, page, take};
use base::addr::{Pfn, PhysAddr};
use base::log::chain;
use vmcore::source::{Access, Core, PhysicalMemory, ReadError, Vmcore};

/// Control bit: cut the file short once it is open.
const CUT: u8 = 1;

/// Reads these bytes; panics where a promise is broken.
pub(crate) fn check(data: &[u8]) {
    let mut bytes = data;
    let control = take(&mut bytes, 1).first().copied().unwrap_or(0);
    let file = Scratch::new(bytes);
    let (mapped, read) = (open(&file.path(), Access::Mmap), open(&file.path(), Access::Pread));
    assert_eq!(mapped.is_some(), read.is_some());
    let (Some(mapped), Some(read)) = (mapped, read) else { return };
    check_ranges(&mapped);
    assert!(!mapped.ranges().is_empty());
    assert_eq!(mapped.ranges(), read.ranges());
    assert_eq!(mapped.info(), read.info());
    check_notes(&mapped, u64::try_from(bytes.len()).unwrap());
    let cut = control & CUT != 0;
    if cut {
        check_pages(&mapped, &read, false); // so that a window stands when the file shrinks
        file.truncate(u64::try_from(bytes.len() / 2).unwrap());
    }
    check_pages(&mapped, &read, cut);
    check_holes(&mapped);
}

fn open(path: &Path, access: Access) -> Option<Vmcore> {
    Vmcore::open(path, access).inspect_err(|error| assert!(!chain(error).is_empty())).ok()
}

fn check_notes(core: &Vmcore, file_len: u64) {
    let notes = core.notes();
    assert!(notes.notes.len() <= 32 * 1024);
    for note in &notes.notes {
        assert!(note.desc_offset + note.desc_len <= note.offset + note.len, "{note:?}");
        assert!(note.offset + note.len <= file_len, "{note:?} is not in a file of {file_len} bytes");
    }
    assert!(usize::try_from(notes.cpus()).unwrap() <= notes.notes.len());
    if let Some(last) = notes.notes.last() {
        core.read_note_bytes(last.offset, &mut vec![0; usize::try_from(last.len).unwrap()]).unwrap();
    }
}

/// Every page of a range can be read: by window, by `pread`, and by address.
fn check_pages(mapped: &Vmcore, read: &Vmcore, may_fail: bool) {
    let size = mapped.page_size();
    let (mut by_window, mut by_pread) = (mapped.page_reader(), read.page_reader());
    for pfn in chosen_pages(mapped) {
        let Some(addr) = size.addr_of(pfn).filter(|addr| addr.checked_add(size.bytes()).is_some()) else {
            continue;
        };
        let (mut a, mut b, mut c) = (page(mapped, 0xa5), page(mapped, 0x5a), page(mapped, 0xc3));
        let results = [
            by_window.read_page(pfn, &mut a),
            by_pread.read_page(pfn, &mut b),
            mapped.read_exact_at(addr, &mut c),
        ];
        if may_fail {
            assert!(results.iter().all(|result| matches!(result, Ok(()) | Err(ReadError::Io { .. }))));
            continue;
        }
        assert!(results.iter().all(Result::is_ok), "page {pfn}: {results:?}");
        assert!(a == b && b == c, "page {pfn} differs");
        let ahead = a.len() / 3;
        let mut part = vec![0xff; 17];
        let at = addr.checked_add(u64::try_from(ahead).unwrap()).unwrap();
        mapped.read_exact_at(at, &mut part).unwrap();
        assert_eq!(part, a[ahead..ahead + part.len()]);
    }
}

/// Pages beside a range are holes.
fn check_holes(core: &Vmcore) {
    let mut reader = core.page_reader();
    for range in core.ranges().iter().take(16) {
        for pfn in [range.start().0.checked_sub(1), Some(range.end().0)].into_iter().flatten() {
            let got = reader.read_page(Pfn(pfn), &mut page(core, 0));
            assert!(matches!(got, Err(ReadError::Hole(_))), "page {pfn:#x} beside {range}: {got:?}");
        }
    }
    assert!(core.read_exact_at(PhysAddr(u64::MAX), &mut [0; 2]).is_err());
}

/// First inputs.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let memory: Vec<u8> = (0..3 * 4096_usize).map(|at| u8::try_from(at % 251).unwrap()).collect();
    let notes = [
        note("CORE", 1, &[7; 336]),
        note("VMCOREINFO", 0, b"OSRELEASE=6.1\nPAGESIZE=4096\n"),
        note("LINUX", 0x700, &[1; 40]),
    ]
    .concat();
    let load = |paddr, bytes| Load { vaddr: 0xffff_8880_0000_0000 + paddr, paddr, bytes };
    let plain = elf_core(&notes, &[load(0x1000, &memory[..]), load(0x10_0000, &memory[..5000])]);
    // Inside another, half inside another, beginning and ending within a page.
    let odd = elf_core(
        &note("VMCOREINFO", 0, b"PAGESIZE=16384\n"),
        &[
            load(0x1234, &memory[..9000]),
            load(0x2000, &memory[..100]),
            load(0x3000, &memory[..9000]),
            load(0x9001, &[1]),
        ],
    );
    // The count of segments in section header 0, which stands at the end.
    let counted = counted(&elf_core(&notes, &[load(0x1000, &memory[..4096])]), 2);
    let plain = [(0, &plain), (CUT, &plain), (0, &odd), (CUT, &odd), (0, &counted)];
    let mended = mended();
    let mended = mended.iter().map(|file| (0, file));
    plain.into_iter().chain(mended).map(|(control, file)| [&[control], &file[..]].concat()).collect()
}

/// What drgn mended in July and August 2026, as far as an ELF core is concerned; the commits are its.
fn mended() -> Vec<Vec<u8>> {
    let memory = [7; 0x3000];
    let load = |vaddr, paddr, len: usize| Load { vaddr, paddr, bytes: &memory[..len] };
    let one = [load(0xffff_8880_0000_1000, 0x1000, 0x1000)];
    let registers = |name: &str, len: usize| note(name, 1, &memory[..len]);

    // d530e0c2: a name that CORE begins with, or that begins with CORE, is another name.
    let names: Vec<u8> =
        ["", "C", "CO", "COR", "CORES", "CORE"].iter().flat_map(|name| registers(name, 336)).collect();
    let names = elf_core(&names, &one);
    assert_eq!(cpus(&names), 1, "only CORE is CORE");
    // 003fa81f: registers that are shorter than the kernel's structure.
    let short: Vec<u8> = [0, 1, 335].iter().flat_map(|len| registers("CORE", *len)).collect();
    // 9f6bd02f: a note of which there is one, twice.
    let info = |text: &[u8]| note("VMCOREINFO", 0, text);
    let twice = [info(b"OSRELEASE=6.1\nPAGESIZE=4096\n"), info(b"OSRELEASE=7.2\nPAGESIZE=16384\n")].concat();
    // 046b94f0: text that ends within a value, with nothing behind it; a length that overflows with one more
    // byte.
    let mut ends = elf_core(&[], &one);
    let text = info(b"PAGESIZE=4096\nNUMBER(phys_base)=-");
    let (at, len) = (u64::try_from(ends.len()).unwrap(), u64::try_from(text.len()).unwrap());
    put(&mut ends, 64 + 8, &at.to_le_bytes());
    put(&mut ends, 64 + 32, &len.to_le_bytes());
    ends.extend(&text);
    let mut endless = info(b"PAGESIZE=4096\n");
    put(&mut endless, 4, &u32::MAX.to_le_bytes());
    // ddcffec8: more program headers than the ELF header can count, and more than the file has.
    let counts = [0x1_0001, 0x0100_0002, u32::MAX].map(|count| counted(&elf_core(&[], &one), count));
    // e7be7b23, c0cc6439: a segment that begins below all others and reaches into one, in no order.
    let below = [load(0, 0x8000, 0x1000), load(0, 0x4000, 0x3000), load(0, 0x2000, 0x3000)];
    // 77850a16: two places of one virtual address.
    let again = [load(0xffff_8880_0000_1000, 0x1000, 0x1000), load(0xffff_8880_0000_1000, 0x9000, 0x1000)];
    // ca6d0fa9: nothing, where there is mostly something.
    let empty = [load(0xffff_8880_0000_1000, 0x1000, 0), load(0, u64::MAX, 0), load(0, 0x2000, 0x1000)];
    let cores = [(short, &one[..]), (twice, &one), (endless, &one), (vec![], &below), (vec![], &again)];
    let cores = cores.iter().map(|(notes, loads)| elf_core(notes, loads));
    [names, ends, elf_core(&[], &empty)].into_iter().chain(cores).chain(counts).collect()
}

/// The CPUs whose registers are in a core.
fn cpus(file: &[u8]) -> u32 {
    let file = Scratch::new(file);
    open(&file.path(), Access::Pread).expect("a core").notes().cpus()
}

/// The core with its number of program headers in section header 0 (PN_XNUM).
fn counted(core: &[u8], count: u32) -> Vec<u8> {
    let mut core = core.to_vec();
    let at = u64::try_from(core.len()).unwrap();
    put(&mut core, 40, &at.to_le_bytes());
    put(&mut core, 56, &[0xff, 0xff]);
    let mut section = [0; 64];
    put(&mut section, 44, &count.to_le_bytes());
    core.extend(section);
    core
}
