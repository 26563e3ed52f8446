//! Which VMCOREINFO to believe: the note of the vmcore, the copy that the loader made while the
//! kernel was healthy, or one that lies somewhere in memory.
//!
//! The copy lies in the reserved memory and is of the same boot, so where both describe one kernel
//! and differ, the note has been damaged since. Only CRASHTIME is younger than the copy.

use serde::Serialize;

use crate::format::vmcoreinfo::{self, VmcoreInfo};
use crate::kernel::{Kernel, uts};
use crate::source::PhysicalMemory;
use base::addr::{Pfn, PhysAddr};
use base::beat;

/// Keys without which nothing is found.
const VITAL_KEYS: [&str; 3] = ["OSRELEASE", "NUMBER(phys_base)", "SYMBOL(swapper_pg_dir)"];
/// Pages that are searched between two beats: 1 GiB with 4 KiB pages.
const PAGES_PER_HEARTBEAT: u64 = 1 << 18;

/// Where VMCOREINFO came from, if not from the note alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "source", rename_all = "kebab-case")]
pub enum Origin {
    /// The loader's copy, because the note is missing or of no use.
    Copy,
    /// The loader's copy, because the note differs from it in so many keys.
    DamagedNote {
        /// Keys that are missing in the note or have other values there.
        keys: usize,
    },
    /// A page of memory.
    Memory {
        /// Its physical address.
        address: u64,
    },
    /// There is none: no log, no page types, 4 KiB pages assumed.
    Nowhere,
}

/// The VMCOREINFO to use, and where it came from if that is not the note. `copy` is the loader's,
/// empty if there is none.
#[must_use]
pub fn settle(
    note: &VmcoreInfo,
    copy: &VmcoreInfo,
    memory: &dyn PhysicalMemory,
) -> (VmcoreInfo, Option<Origin>) {
    if is_usable(copy) {
        if is_usable(note) && !describe_one_kernel(note, copy) {
            return (note.clone(), None); // the image was loaded by another kernel than the one that crashed
        }
        let mut settled = copy.clone();
        settled.take_over(note, "CRASHTIME");
        let keys = settled.differences(note);
        if is_usable(note) {
            return (settled, (keys > 0).then_some(Origin::DamagedNote { keys }));
        }
        if matches_memory(&settled, memory) {
            return (settled, Some(Origin::Copy));
        }
    }
    if is_usable(note) {
        return (note.clone(), None);
    }
    match scan(memory) {
        Some((address, found)) => (found, Some(Origin::Memory { address: address.0 })),
        None => (note.clone(), Some(Origin::Nowhere)),
    }
}

fn is_usable(info: &VmcoreInfo) -> bool {
    VITAL_KEYS.iter().all(|key| info.get(key).is_some())
}

/// Whether both are of one kernel: build id and release agree, or all but a few lines do and one of
/// these is damaged.
fn describe_one_kernel(note: &VmcoreInfo, copy: &VmcoreInfo) -> bool {
    let same = |key| note.get(key) == copy.get(key);
    (same("BUILD-ID") && same("OSRELEASE")) || copy.differences(note).saturating_mul(4) < copy.len()
}

/// Whether the kernel in memory has the release that the copy says.
fn matches_memory(copy: &VmcoreInfo, memory: &dyn PhysicalMemory) -> bool {
    let kernel = Kernel::new(memory, copy, &[]);
    uts::discover(&kernel).is_ok_and(|utsname| Some(utsname.release.as_str()) == copy.get("OSRELEASE"))
}

/// Looks for the page that the kernel keeps VMCOREINFO in (`vmcoreinfo_data`,
/// kernel/vmcore_info.c): it begins with the release, and the kernel that it leads to has that
/// release. Others may lie about: of the boot before, or made up. If none leads to its kernel, the
/// longest counts.
fn scan(memory: &dyn PhysicalMemory) -> Option<(PhysAddr, VmcoreInfo)> {
    let size = memory.page_size();
    let (mut reader, mut page) = (memory.page_reader(), vec![0; size.in_memory()]);
    let mut best: Option<(PhysAddr, VmcoreInfo)> = None;
    let pages = memory.ranges().iter().flat_map(|range| (range.start().0..range.end().0).map(Pfn));
    for (pfn, count) in pages.zip(1_u64..) {
        if count.is_multiple_of(PAGES_PER_HEARTBEAT) {
            beat::alive();
        }
        if reader.read_page(pfn, &mut page).is_err() || !page.starts_with(b"OSRELEASE=") {
            continue;
        }
        let Some(address) = size.addr_of(pfn) else { continue };
        let mut text = vec![0; vmcoreinfo::MAX_LEN.min(size.in_memory().saturating_mul(2))];
        if memory.read_exact_at(address, &mut text).is_err() {
            text.clone_from(&page);
        }
        let found = VmcoreInfo::parse(text.split(|&byte| byte == 0).next().unwrap_or_default());
        if is_usable(&found) && matches_memory(&found, memory) {
            return Some((address, found));
        }
        if is_usable(&found) && best.as_ref().is_none_or(|(_, best)| best.len() < found.len()) {
            best = Some((address, found));
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::testing::CoreFile;
    use crate::source::{Access, Vmcore};

    const BUILD: &str = "BUILD-ID=3b43fad5\n";

    /// VMCOREINFO of a kernel whose `init_uts_ns` lies at physical 0x3000.
    fn text(release: &str, more: &str) -> String {
        format!(
            "OSRELEASE={release}\nPAGESIZE=4096\nSYMBOL(swapper_pg_dir)=ffffffff80001000\nNUMBER(phys_base)=0\n\
             SYMBOL(init_uts_ns)=ffffffff80003000\nOFFSET(uts_namespace.name)=0\n{more}"
        )
    }

    /// Memory with a page table that maps the kernel image, the kernel's name, and `page` at
    /// 0x5000.
    fn memory(release: &str, page: &[u8]) -> Vmcore {
        let mut bytes = vec![0; 0x6000];
        bytes[0x1ff8..0x2000].copy_from_slice(&0x2003_u64.to_le_bytes()); // top → 0x2000
        bytes[0x2ff0..0x2ff8].copy_from_slice(&0x83_u64.to_le_bytes()); // 1 GiB at 0
        bytes[0x3000..0x3005].copy_from_slice(b"Linux");
        bytes[0x3000 + 2 * 65..][..release.len()].copy_from_slice(release.as_bytes());
        bytes[0x5000..0x5000 + page.len()].copy_from_slice(page);
        let file = CoreFile::new().segment(0, &bytes).write();
        Vmcore::open(file.path(), Access::Pread).unwrap()
    }

    fn parse(text: &str) -> VmcoreInfo {
        VmcoreInfo::parse(text.as_bytes())
    }

    #[test]
    fn a_note_without_damage_is_taken_as_it_is() {
        let core = memory("6.1-a", b"");
        let note = parse(&text("6.1-a", &format!("{BUILD}CRASHTIME=7\n")));
        assert_eq!(settle(&note, &VmcoreInfo::default(), &core), (note.clone(), None));
        let copy = parse(&text("6.1-a", BUILD));
        assert_eq!(settle(&note, &copy, &core), (note.clone(), None));
        // An image that another kernel loaded, say before a kexec.
        let other = parse(&text("6.12-b", "BUILD-ID=ffff\nNUMBER(x)=1\n").replace("ffffffff8", "ffffffff9"));
        assert_eq!(settle(&note, &other, &core), (note, None));
    }

    #[test]
    fn a_damaged_note_gives_way_to_the_copy() {
        let core = memory("6.1-a", b"");
        let copy = parse(&text("6.1-a", BUILD));
        for damage in ["PAGESIZE=4097", "OSRELEASE=6.1-b", "SYMBOL(init_uts_ns)=0"] {
            let (key, _) = damage.split_once('=').unwrap();
            let text = text("6.1-a", &format!("{BUILD}CRASHTIME=7\n"));
            let line = text.lines().find(|line| line.starts_with(key)).unwrap();
            let (settled, origin) = settle(&parse(&text.replace(line, damage)), &copy, &core);
            assert_eq!(origin, Some(Origin::DamagedNote { keys: 1 }), "{damage}");
            assert_eq!((settled.crash_time(), settled.differences(&copy)), (Some(7), 1));
        }
    }

    #[test]
    fn without_a_note_the_copy_must_be_of_the_kernel_in_memory() {
        let copy = parse(&text("6.1-a", BUILD));
        let none = VmcoreInfo::default();
        assert_eq!(settle(&none, &copy, &memory("6.1-a", b"")), (copy.clone(), Some(Origin::Copy)));
        assert_eq!(settle(&none, &copy, &memory("6.1-b", b"")), (none, Some(Origin::Nowhere)));
    }

    #[test]
    fn at_last_memory_is_searched() {
        let in_memory = text("6.1-a", "CRASHTIME=9\n");
        let core = memory("6.1-a", in_memory.as_bytes());
        let (settled, origin) = settle(&VmcoreInfo::default(), &VmcoreInfo::default(), &core);
        assert_eq!(origin, Some(Origin::Memory { address: 0x5000 }));
        assert_eq!(settled, parse(&in_memory));
    }
}
