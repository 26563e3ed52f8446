//! Whether VMCOREINFO can be right about struct pages: pages whose class is known from elsewhere are classified, and a
//! class that claims many of them is not dropped. One damaged struct page is not many; a wrong offset or flag
//! number is.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::addr::{Pfn, PfnRange, VirtAddr, to_usize};
use crate::filter::{ClassCounts, PageClass, PageFilter, vital};
use crate::kernel::Kernel;

/// Pages that are classified, of each kind.
const SAMPLE: u64 = 4096;
/// A class that claims more than one in this many is wrong.
const TOLERATED: u64 = 16;
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
    let wrong =
        counts.iter().filter(|(class, claimed)| !class.is_kernel() && claimed.saturating_mul(TOLERATED) > of);
    wrong.map(|(class, claimed)| Contradiction { class, claimed, of, pages: sample }).collect()
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
