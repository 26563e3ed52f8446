//! Which VMCOREINFO to believe: the note of the vmcore, the copy that the loader made while the kernel was healthy, or
//! one that lies somewhere in memory.
//!
//! The copy lies in the reserved memory and is of the same boot, so where both describe one kernel and differ, the
//! note has been damaged since. Only CRASHTIME is younger than the copy.

use serde::Serialize;

use crate::addr::{PhysAddr, to_u64};
use crate::format::vmcoreinfo::{self, VmcoreInfo};
use crate::kernel::{Kernel, uts};
use crate::source::PhysicalMemory;

/// Keys without which nothing is found.
const VITAL_KEYS: [&str; 3] = ["OSRELEASE", "NUMBER(phys_base)", "SYMBOL(swapper_pg_dir)"];
/// Bytes that are searched at a time.
const PIECE: usize = 1 << 20;

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

/// The VMCOREINFO to use, and where it came from if that is not the note. `copy` is the loader's, empty if there is none.
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

/// Whether both are of one kernel: build id and release agree, or all but a few lines do and one of these is damaged.
fn describe_one_kernel(note: &VmcoreInfo, copy: &VmcoreInfo) -> bool {
    let same = |key| note.get(key) == copy.get(key);
    (same("BUILD-ID") && same("OSRELEASE")) || copy.differences(note).saturating_mul(4) < copy.len()
}

/// Whether the kernel in memory has the release that the copy says.
fn matches_memory(copy: &VmcoreInfo, memory: &dyn PhysicalMemory) -> bool {
    let kernel = Kernel::new(memory, copy, &[]);
    uts::discover(&kernel).is_ok_and(|utsname| Some(utsname.release.as_str()) == copy.get("OSRELEASE"))
}

/// Looks for the page that the kernel keeps VMCOREINFO in (`vmcoreinfo_data`, kernel/vmcore_info.c): it begins with the
/// release. Of several the longest counts: the others are copies that were cut or are being made.
fn scan(memory: &dyn PhysicalMemory) -> Option<(PhysAddr, VmcoreInfo)> {
    let size = memory.page_size();
    let (mut reader, mut buffer) = (memory.page_reader(), vec![0; PIECE]);
    let mut best: Option<(PhysAddr, VmcoreInfo)> = None;
    for range in memory.ranges() {
        let mut at = size.addr_of(range.start())?;
        let end = size.addr_of(range.end())?;
        while at < end {
            let len = PIECE.min(crate::addr::to_usize(end.0.saturating_sub(at.0)));
            let piece = buffer.get_mut(..len).unwrap_or_default();
            let pages = piece.chunks_exact_mut(size.in_memory());
            for (page, index) in pages.zip(0_u64..) {
                let address = PhysAddr(at.0.saturating_add(index.saturating_mul(size.bytes())));
                let read = reader.read_exact_at(address, page).is_ok();
                if !read || !page.starts_with(b"OSRELEASE=") {
                    continue;
                }
                let mut text = vec![0; vmcoreinfo::MAX_LEN.min(size.in_memory().saturating_mul(2))];
                if memory.read_exact_at(address, &mut text).is_err() {
                    text = page.to_vec();
                }
                let found = VmcoreInfo::parse(text.split(|&byte| byte == 0).next().unwrap_or_default());
                let better = best.as_ref().is_none_or(|(_, best)| best.len() < found.len());
                if is_usable(&found) && better {
                    best = Some((address, found));
                }
            }
            at = PhysAddr(at.0.saturating_add(to_u64(len)));
        }
    }
    best
}
