//! Whether VMCOREINFO can be right about struct pages: pages whose class is known from elsewhere
//! are classified, and a class that claims many of them is not dropped. One damaged struct page is
//! not many; a wrong offset or flag number is.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::filter::{ClassCounts, PageClass, PageFilter, vital};
use crate::kernel::Kernel;
use crate::kernel::memmap::Section;
use base::addr::{Pfn, PfnRange, VirtAddr, to_usize};

/// Pages that are classified, of each kind.
const SAMPLE: u64 = 4096;
/// A class that claims more than one in this many of the pages that words point to is wrong: some
/// words are no pointers.
const TOLERATED: u64 = 16;
/// And of the vital pages, which are the kernel's for sure.
const TOLERATED_VITAL: u64 = 64;
/// A class of pages that must not be read is wrong if it claims more than a few and one in this
/// many: of the kernel's pages few are broken, and none is offline.
const TOLERATED_UNREAD: u64 = 256;
const FEW: u64 = 4;
/// Pages of a section's struct pages that are classified.
const PER_SECTION: u64 = 16;
/// Bytes of kernel data in which pointers are looked for.
const DATA: u64 = 4 << 20;

/// A class that is not dropped, because it claims pages that cannot be of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Contradiction {
    /// The class.
    pub class: PageClass,
    /// Pages of the kernel that it claims.
    pub claimed: u64,
    /// Pages that were classified.
    pub of: u64,
    /// Which pages these are.
    pub pages: Sample,
}

/// Pages whose class is known without their struct pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sample {
    /// Kernel text and data, page tables, struct pages, the log.
    Vital,
    /// Pages that the kernel's data points to: slab objects and per-CPU memory, mostly.
    PointedTo,
}

/// Classifies the samples with `filter`, which knows of no vital pages yet.
pub(super) fn run(filter: &PageFilter<'_>, kernel: &Kernel<'_>, vital: &[PfnRange]) -> Vec<Contradiction> {
    let mut found = check(filter, Sample::Vital, vital::sample(vital, SAMPLE));
    let more = check(filter, Sample::PointedTo, pointed_to(filter, kernel).into_iter());
    found.extend(
        more.into_iter().filter(|new| found.iter().all(|old| old.class != new.class)).collect::<Vec<_>>(),
    );
    found
}

fn check(filter: &PageFilter<'_>, sample: Sample, pages: impl Iterator<Item = Pfn>) -> Vec<Contradiction> {
    let mut scanner = filter.scanner();
    let (mut counts, mut of, mut out) = (ClassCounts::default(), 0_u64, Vec::new());
    for page in pages.filter_map(|pfn| PfnRange::new(pfn, pfn.saturating_add(1))) {
        scanner.classify(page, &mut out);
        for &class in &out {
            counts.add(class, 1);
        }
        of = of.saturating_add(1);
    }
    let tolerated = |class| match (class, sample) {
        (PageClass::Poisoned | PageClass::Offline, _) => {
            FEW.saturating_add(of.checked_div(TOLERATED_UNREAD).unwrap_or(0))
        }
        (_, Sample::Vital) => of.checked_div(TOLERATED_VITAL).unwrap_or(0),
        (_, Sample::PointedTo) => of.checked_div(TOLERATED).unwrap_or(0),
    };
    let wrong = counts.iter().filter(|&(class, claimed)| !class.is_kept() && claimed > tolerated(class));
    wrong.map(|(class, claimed)| Contradiction { class, claimed, of, pages: sample }).collect()
}

/// Sections whose struct pages lie in memory that is not the kernel's, by the struct pages of that
/// memory: a page table leads elsewhere, and what is read there are no struct pages; or the struct
/// pages that say so are none. So both sections are not to be trusted. A page of each.
pub(super) fn misplaced_sections(filter: &PageFilter<'_>, kernel: &Kernel<'_>) -> Vec<Pfn> {
    let (mut scanner, mut out) = (filter.scanner(), Vec::new());
    let (mut misplaced, mut sections, mut foreign_sections) = (Vec::new(), 0_usize, 0_usize);
    for (pages, section) in filter.memmap.sections() {
        let Section::Online(base) = section else { continue };
        let len = pages.pages().saturating_mul(filter.memmap.struct_size());
        let step = len.checked_div(PER_SECTION).unwrap_or(1).max(1);
        let (mut foreign, mut of) = (Vec::new(), 0_usize);
        for ahead in (0..len).step_by(to_usize(step)) {
            let phys = base.checked_add(ahead).and_then(|at| kernel.translate(at).ok());
            let pfn = phys.map(|phys| filter.memory.page_size().pfn_of(phys));
            let Some(page) = pfn.and_then(|pfn| PfnRange::new(pfn, pfn.saturating_add(1))) else { continue };
            scanner.classify(page, &mut out);
            of = of.saturating_add(1);
            if out.iter().any(|class| !class.is_kernel()) {
                foreign.push(page.start());
            }
        }
        // Of a few pages one may have a damaged struct page.
        if foreign.len() > 1 && foreign.len().saturating_mul(8) > of {
            misplaced.push(pages.start());
            misplaced.extend(foreign);
            foreign_sections = foreign_sections.saturating_add(1);
        }
        sections = sections.saturating_add(1);
    }
    // If they all seem to lie elsewhere, the classes are wrong, which is for the other check to
    // find.
    if sections > 2 && foreign_sections.saturating_mul(2) > sections {
        misplaced.clear();
    }
    misplaced
}

/// Pages that words in the kernel's data point to.
fn pointed_to(filter: &PageFilter<'_>, kernel: &Kernel<'_>) -> BTreeSet<Pfn> {
    let mut pages = BTreeSet::new();
    let Some((text, data)) = vital::image(kernel) else { return pages };
    let mut page = [0_u8; 4096];
    let mut at = data.start.0 & !0xfff;
    let end = data.end.0.min(at.saturating_add(DATA));
    while at < end && pages.len() < to_usize(SAMPLE) {
        let address = VirtAddr(at);
        at = at.saturating_add(4096);
        if kernel.read(address, &mut page, "kernel data").is_err() {
            continue;
        }
        for word in page.chunks_exact(8).filter_map(|word| word.try_into().ok()).map(u64::from_le_bytes) {
            // Pointers into the image itself, and struct pages, are vital already.
            let outside = word.wrapping_sub(text.start.0) >= 1 << 31;
            if word < 1 << 63 || !outside {
                continue;
            }
            if let Ok(phys) = kernel.translate(VirtAddr(word)) {
                pages.insert(filter.memory.page_size().pfn_of(phys));
            }
        }
    }
    pages
}
