//! What each page is, by its struct page: the classes that a dump can leave out.
//!
//! The order of the tests is makedumpfile's, with three differences, each on the side of keeping
//! and of not touching: poisoned pages are told before anything else, so a poisoned tail of a
//! healthy page is not read; a page is dropped only if its own struct page agrees (a tail points to
//! its head, a page inside a free block looks free), so that a damaged head drops no page that
//! disagrees; and nothing that has a page type is taken for a page of a process or a file.
//! `docs/design/filter.md` has the table.
//!
//! Nothing here reads the pages themselves, or knows what becomes of a verdict.

mod cache;
mod free;
mod offline;
pub mod order;
mod poisoned;
mod reserved;
mod scan;
mod selfcheck;
#[cfg(test)]
mod tests;
pub mod units;
mod user;
mod vital;
pub mod vmemmap;

use serde::Serialize;

use crate::format::vmcoreinfo::VmcoreInfo;
use crate::kernel::memmap::Memmap;
use crate::kernel::page::{Compound, PageInfo, PageLayout};
use crate::kernel::{Kernel, KernelError, LinearMap};
use crate::source::PhysicalMemory;
use base::addr::PfnRange;
use base::config::Exclude;

pub use scan::{ScanStats, Scanner};
pub use selfcheck::Contradiction;

/// What a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum PageClass {
    /// In use by the kernel, or of no class that is known.
    Kernel,
    /// Of the slab allocator.
    Slab,
    /// The kernel's since the machine booted: its image, per-CPU areas, struct pages, large tables.
    Reserved,
    /// Without a struct page that can be used or believed.
    Unknown,
    /// Page cache without private data of the file system; tmpfs too.
    Cache,
    /// Page cache with private data of the file system.
    PrivateCache,
    /// Anonymous memory of processes: KSM and huge pages too.
    User,
    /// Of hugetlbfs, in use or in its pool.
    Hugetlb,
    /// Free, or never accepted from the hypervisor.
    Free,
    /// Struct pages of pages that are all left out.
    UnusedVmemmap,
    /// Broken memory.
    Poisoned,
    /// Logically offline.
    Offline,
}

impl PageClass {
    /// All classes, in the order of their numbers.
    pub const ALL: [Self; 12] = [
        Self::Kernel,
        Self::Slab,
        Self::Reserved,
        Self::Unknown,
        Self::Cache,
        Self::PrivateCache,
        Self::User,
        Self::Hugetlb,
        Self::Free,
        Self::UnusedVmemmap,
        Self::Poisoned,
        Self::Offline,
    ];

    /// Its name, in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Slab => "slab",
            Self::Reserved => "reserved",
            Self::Unknown => "unknown",
            Self::Cache => "cache",
            Self::PrivateCache => "private-cache",
            Self::User => "user",
            Self::Hugetlb => "hugetlb",
            Self::Free => "free",
            Self::UnusedVmemmap => "unused-vmemmap",
            Self::Poisoned => "poisoned",
            Self::Offline => "offline",
        }
    }

    /// Its place in [`PageClass::ALL`].
    #[must_use]
    #[expect(clippy::as_conversions, reason = "an enum without data")]
    pub fn index(self) -> usize {
        self as usize
    }

    /// Whether a dump that is to leave out `exclude` leaves out pages of this class.
    #[must_use]
    pub fn is_dropped(self, exclude: Exclude) -> bool {
        match self {
            Self::Kernel | Self::Slab | Self::Reserved | Self::Unknown => false,
            Self::Cache => exclude.cache() || exclude.private_cache(),
            Self::PrivateCache => exclude.private_cache(),
            Self::User | Self::Hugetlb => exclude.user(),
            Self::Free => exclude.free(),
            Self::UnusedVmemmap => exclude.unused_vmemmap(),
            Self::Poisoned | Self::Offline => !exclude.reads_poisoned(),
        }
    }

    /// Whether no dump leaves out pages of this class.
    #[must_use]
    pub fn is_kept(self) -> bool {
        matches!(self, Self::Kernel | Self::Slab | Self::Reserved | Self::Unknown)
    }

    /// Whether the pages must be kept unless reading them does harm.
    #[must_use]
    pub fn is_kernel(self) -> bool {
        !matches!(self, Self::Cache | Self::PrivateCache | Self::User | Self::Hugetlb | Self::Free)
    }
}

/// Pages by class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClassCounts([u64; PageClass::ALL.len()]);

impl ClassCounts {
    /// Pages of a class.
    #[must_use]
    pub fn of(&self, class: PageClass) -> u64 {
        self.0.get(class.index()).copied().unwrap_or(0)
    }

    /// Counts `pages` more of a class.
    pub fn add(&mut self, class: PageClass, pages: u64) {
        if let Some(count) = self.0.get_mut(class.index()) {
            *count = count.saturating_add(pages);
        }
    }

    /// Moves `pages` from one class to another.
    pub fn reassign(&mut self, from: PageClass, to: PageClass, pages: u64) {
        if let Some(count) = self.0.get_mut(from.index()) {
            *count = count.saturating_sub(pages);
        }
        self.add(to, pages);
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: &Self) {
        for class in PageClass::ALL {
            self.add(class, other.of(class));
        }
    }

    /// Classes that have pages.
    pub fn iter(&self) -> impl Iterator<Item = (PageClass, u64)> + '_ {
        PageClass::ALL.into_iter().map(|class| (class, self.of(class))).filter(|&(_, pages)| pages > 0)
    }
}

impl core::fmt::Display for ClassCounts {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let classes: Vec<String> =
            self.iter().map(|(class, pages)| format!("{pages} {}", class.name())).collect();
        f.write_str(&classes.join(", "))
    }
}

impl Serialize for ClassCounts {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter().map(|(class, pages)| (class.name(), pages)))
    }
}

/// Everything that telling page classes takes: made once, shared by the threads that scan.
pub struct PageFilter<'a> {
    memory: &'a dyn PhysicalMemory,
    info: &'a VmcoreInfo,
    linear: &'a [LinearMap],
    layout: PageLayout,
    memmap: Memmap,
    /// Pages that are the kernel's, whatever their struct pages say: sorted.
    vital: Vec<PfnRange>,
    /// Classes that claim pages which cannot be of them: their pages are kept.
    off: Vec<PageClass>,
}

impl core::fmt::Debug for PageFilter<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("PageFilter")
            .field("layout", &self.layout)
            .field("off", &self.off)
            .finish_non_exhaustive()
    }
}

impl<'a> PageFilter<'a> {
    /// Finds struct pages and what they mean, and checks the meaning against pages whose class is
    /// known from elsewhere. `report` hears of classes that fail the check and are therefore not
    /// dropped.
    pub fn discover(
        memory: &'a dyn PhysicalMemory,
        info: &'a VmcoreInfo,
        linear: &'a [LinearMap],
        report: &mut dyn FnMut(Contradiction),
    ) -> Result<Self, KernelError> {
        let mut layout = PageLayout::discover(info)?;
        let kernel = Kernel::new(memory, info, linear);
        let memmap = Memmap::discover(&kernel, memory.ranges(), memory.page_size(), layout.size())?;
        layout.set_reserved(reserved::mask(&kernel, &memmap, &layout));
        let mut filter = Self { memory, info, linear, layout, memmap, vital: Vec::new(), off: Vec::new() };
        // With what sections that are not trusted any more call their struct pages: one of them may
        // be right.
        let vital = vital::discover(&kernel, memory, &filter.memmap);
        filter.memmap.distrust_mappings(&kernel);
        for page in selfcheck::misplaced_sections(&filter, &kernel) {
            filter.memmap.distrust(page);
        }
        for contradiction in selfcheck::run(&filter, &kernel, &vital) {
            filter.off.push(contradiction.class);
            report(contradiction);
        }
        filter.vital = vital;
        Ok(filter)
    }

    /// Where the struct pages lie.
    #[must_use]
    pub fn memmap(&self) -> &Memmap {
        &self.memmap
    }

    /// Pages that are the kernel's and are therefore never dropped: sorted, disjoint.
    #[must_use]
    pub fn vital(&self) -> &[PfnRange] {
        &self.vital
    }

    /// A scanner; each thread has its own.
    #[must_use]
    pub fn scanner(&self) -> Scanner<'_> {
        Scanner::new(self)
    }

    fn kernel(&self) -> Kernel<'a> {
        Kernel::new(self.memory, self.info, self.linear)
    }
}

/// The class of a page that is no tail, by its own struct page. The first test that claims it wins.
fn class_of(layout: &PageLayout, page: &PageInfo, compound: Compound) -> PageClass {
    poisoned::class(layout, page)
        .or_else(|| offline::class(layout, page))
        .or_else(|| free::class(layout, page))
        .or_else(|| layout.is_slab(page).then_some(PageClass::Slab))
        .or_else(|| user::hugetlb(compound))
        .or_else(|| layout.is_typed(page).then_some(PageClass::Kernel))
        .or_else(|| cache::class(layout, page))
        .or_else(|| user::anonymous(layout, page))
        .unwrap_or(if layout.is_reserved(page) { PageClass::Reserved } else { PageClass::Kernel })
}
