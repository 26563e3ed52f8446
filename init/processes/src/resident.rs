//! Where the content of each page of a process is: in memory, nowhere yet, or not to be had.

use base::addr::{Pfn, PfnRange, VirtAddr};
use vmcore::source::PhysicalMemory;

use crate::cache::{self, Cached};
use crate::mappings::{Mapping, Space, flag};
use crate::system::System;
use crate::tables::{self, Entry, Steps};

const PAGE: u64 = 4096;

/// Why the content of a page cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// The dump left the page out, or lost it.
    NotInDump,
    /// It is in swap space.
    Swapped,
    /// It is of a file, and was not in memory.
    InFile,
    /// It is memory of a device, or provided by the kernel when it is touched.
    Device,
    /// It was being moved or is broken.
    Special,
    /// The table or the node that leads to it is damaged or not in the dump.
    Lost,
    /// It is beyond what a process of this machine can have: its tables are damaged.
    TooMuch,
}

impl Why {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::NotInDump,
        Self::Swapped,
        Self::InFile,
        Self::Device,
        Self::Special,
        Self::Lost,
        Self::TooMuch,
    ];

    /// For people.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::NotInDump => "not in the dump",
            Self::Swapped => "swapped out",
            Self::InFile => "of a file, never read into memory or dropped from it",
            Self::Device => "of a device or of the kernel",
            Self::Special => "being moved, broken or a mark",
            Self::Lost => "behind a page table or index that cannot be read",
            Self::TooMuch => "more than there is memory: damaged page tables",
        }
    }

    /// Whether the process had it as memory of its own: a page that its file still has is no loss,
    /// and a device's registers are no memory.
    #[must_use]
    pub fn is_loss(self) -> bool {
        !matches!(self, Self::InFile | Self::Device)
    }
}

/// Where the content of pages is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In memory that the dump holds, page by page from here on.
    Page(Pfn),
    /// In the kernel's own memory.
    Kernel(VirtAddr),
    /// Nowhere: nobody has touched them, and they would read as zeros.
    Untouched,
    /// Not to be had.
    Absent(Why),
}

/// Pages of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First address.
    pub start: u64,
    /// How many.
    pub pages: u64,
    /// Where their content is.
    pub place: Place,
}

/// The pages that a dump holds.
#[derive(Clone, Debug, Default)]
pub struct Held(Vec<PfnRange>);

impl Held {
    /// Asks the memory.
    #[must_use]
    pub fn new(memory: &dyn PhysicalMemory) -> Self {
        let mut held = Vec::new();
        for &range in memory.ranges() {
            let mut at = range.start();
            memory.absent(range, &mut |gap| {
                held.extend(PfnRange::new(at, gap.start()));
                at = gap.end();
            });
            held.extend(PfnRange::new(at, range.end()));
        }
        Self(held)
    }

    /// Whether the page is there.
    #[must_use]
    pub fn has(&self, pfn: Pfn) -> bool {
        self.run(pfn, 1).1
    }

    /// How many pages from `pfn` on are all there or all absent, at most `pages`, and which.
    fn run(&self, pfn: Pfn, pages: u64) -> (u64, bool) {
        let next = self.0.partition_point(|range| range.end() <= pfn);
        match self.0.get(next) {
            Some(range) if range.start() <= pfn => (range.end().0.saturating_sub(pfn.0).min(pages), true),
            Some(range) => (range.start().0.saturating_sub(pfn.0).min(pages), false),
            None => (pages, false),
        }
    }
}

/// Looks pages of a process up.
#[derive(Debug)]
pub struct Pages<'a> {
    /// The kernel.
    pub system: &'a System<'a>,
    /// What the dump holds.
    pub held: &'a Held,
    /// Steps that may still be taken.
    pub steps: Steps,
}

impl<'a> Pages<'a> {
    /// For one look at a process.
    #[must_use]
    pub fn new(system: &'a System<'a>, held: &'a Held) -> Self {
        Self { system, held, steps: Steps::new(system) }
    }

    /// Calls `each` with all pages of a mapping, in order.
    pub fn each(&self, space: &Space, mapping: &Mapping, each: &mut dyn FnMut(Run)) {
        self.each_in(space, mapping, (mapping.start, mapping.end), each);
    }

    /// The same of a part of it, of whole pages.
    pub fn each_in(
        &self,
        space: &Space,
        mapping: &Mapping,
        (start, end): (u64, u64),
        each: &mut dyn FnMut(Run),
    ) {
        let mut at = start;
        tables::walk(self.system, space.tables, (start, end), &self.steps, &mut |run| {
            self.gap(space, mapping, (at, run.start), each);
            at = run.start.saturating_add(run.pages.saturating_mul(PAGE));
            self.mapped(mapping, run, each);
        });
        self.gap(space, mapping, (at, end), each);
    }

    /// The same of what the page tables lead to alone.
    pub fn each_mapped(&self, space: &Space, mapping: &Mapping, each: &mut dyn FnMut(Run)) {
        let range = (mapping.start, mapping.end);
        tables::walk(self.system, space.tables, range, &self.steps, &mut |run| {
            self.mapped(mapping, run, each);
        });
    }

    fn mapped(&self, mapping: &Mapping, run: tables::Run, each: &mut dyn FnMut(Run)) {
        let absent = |why| Run { start: run.start, pages: run.pages, place: Place::Absent(why) };
        match run.entry {
            Entry::Page(pfn) => {
                let is_device = mapping.flags & (flag::PFNMAP | flag::IO) != 0;
                let why = if is_device { Why::Device } else { Why::NotInDump };
                self.split(run.start, run.pages, pfn, why, each);
            }
            Entry::Swapped => each(absent(Why::Swapped)),
            Entry::Special => each(absent(Why::Special)),
            Entry::Lost => each(absent(Why::Lost)),
        }
    }

    /// Pages in memory: those that the dump holds, and those that it does not.
    fn split(&self, start: u64, pages: u64, pfn: Pfn, why: Why, each: &mut dyn FnMut(Run)) {
        let mut done = 0_u64;
        while let Some(left) = pages.checked_sub(done).filter(|left| *left > 0) {
            let pfn = pfn.saturating_add(done);
            let (count, is_held) = self.held.run(pfn, left);
            let place = if is_held { Place::Page(pfn) } else { Place::Absent(why) };
            each(Run { start: start.saturating_add(done.saturating_mul(PAGE)), pages: count, place });
            done = done.saturating_add(count.max(1));
        }
    }

    /// Pages that the tables lead nowhere from.
    fn gap(&self, space: &Space, mapping: &Mapping, (start, end): (u64, u64), each: &mut dyn FnMut(Run)) {
        let pages = end.saturating_sub(start) / PAGE;
        if pages == 0 {
            return;
        }
        let all = |place| Run { start, pages, place };
        if mapping.flags & (flag::PFNMAP | flag::IO) != 0 {
            return each(all(Place::Absent(Why::Device)));
        }
        let Some(file) = mapping.file else {
            return match space.vdso {
                Some((vdso, data, size)) if vdso == mapping.start => {
                    let ahead = start.saturating_sub(vdso);
                    let whole = end.saturating_sub(vdso) <= size.next_multiple_of(PAGE);
                    let place = data.checked_add(ahead).filter(|_| whole);
                    each(all(place.map_or(Place::Absent(Why::Device), Place::Kernel)));
                }
                _ if mapping.has_ops => each(all(Place::Absent(Why::Device))),
                _ => each(all(Place::Untouched)),
            };
        };
        if mapping.has(flag::HUGETLB) {
            // Huge pages that are private and untouched; what others have of a shared file is not known.
            let is_shared = mapping.has(flag::SHARED);
            return each(all(if is_shared { Place::Absent(Why::InFile) } else { Place::Untouched }));
        }
        self.cached(mapping, file, (start, end), each);
    }

    /// Pages of a file.
    fn cached(&self, mapping: &Mapping, file: VirtAddr, (start, end): (u64, u64), each: &mut dyn FnMut(Run)) {
        let system = self.system;
        let index_of =
            |address: u64| mapping.offset.saturating_add(address.saturating_sub(mapping.start) / PAGE);
        let address_of = |index: u64| {
            let pages = index.saturating_sub(mapping.offset);
            mapping.start.saturating_add(pages.saturating_mul(PAGE))
        };
        let (first, behind) = (index_of(start), index_of(end));
        let of = system.pointer(file, system.layout.file.mapping, "file.f_mapping").ok().flatten();
        let Some(of) = of else {
            let pages = behind.saturating_sub(first);
            return each(Run { start, pages, place: Place::Absent(Why::Lost) });
        };
        let is_tmpfs = cache::is_tmpfs(system, of);
        let nowhere = if is_tmpfs { Place::Untouched } else { Place::Absent(Why::InFile) };
        let value = if is_tmpfs { Place::Absent(Why::Swapped) } else { nowhere };
        let none = |first: u64, behind: u64, place: Place, each: &mut dyn FnMut(Run)| {
            let pages = behind.saturating_sub(first);
            if pages > 0 {
                each(Run { start: address_of(first), pages, place });
            }
        };
        let mut at = first;
        cache::walk(system, of, (first, behind), &self.steps, &mut |piece| {
            none(at, piece.index, nowhere, each);
            at = piece.index.saturating_add(piece.pages);
            let start = address_of(piece.index);
            match piece.cached {
                Cached::Page(pfn) => self.split(start, piece.pages, pfn, Why::NotInDump, each),
                Cached::Value => none(piece.index, at, value, each),
                Cached::Lost => each(Run { start, pages: piece.pages, place: Place::Absent(Why::Lost) }),
            }
        });
        none(at, behind, nowhere, each);
    }
}
