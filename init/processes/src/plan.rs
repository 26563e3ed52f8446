//! What goes into a core file, decided before anything is written: its segments, and what is absent.

use std::collections::BTreeMap;

use base::addr::{Pfn, to_u64};

use crate::mappings::{Mapping, Space, flag};
use crate::resident::{Pages, Place, Run, Why};

const PAGE: u64 = 4096;
/// Segments of a file, and stretches of absent pages that are told one by one.
const MAX_SEGMENTS: usize = 1 << 20;
const MAX_ABSENT: usize = 1 << 15;
/// Fewer untouched pages between others are a hole in the file; more are a segment without bytes.
const HOLE: u64 = 256;

/// A stretch of memory in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) start: u64,
    pub(crate) pages: u64,
    /// `p_flags`
    pub(crate) flags: u32,
    /// Where its bytes lie, in pages from where the first ones lie; none if all are zeros.
    pub(crate) at: Option<u64>,
}

/// Pages that are not in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Absent {
    /// First address.
    pub start: u64,
    /// How many.
    pub pages: u64,
    /// Why.
    pub why: Why,
}

/// Pages of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// In memory, and here.
    pub here: u64,
    /// Never touched: zeros.
    pub untouched: u64,
    /// Not to be had, by reason.
    pub absent: BTreeMap<Why, u64>,
}

impl Counts {
    /// Pages that the process had and that are lost.
    #[must_use]
    pub fn lost(&self) -> u64 {
        let lost = self.absent.iter().filter(|(why, _)| why.is_loss());
        lost.fold(0, |sum, (_, pages)| sum.saturating_add(*pages))
    }

    /// Adds pages.
    pub fn add(&mut self, run: &Run) {
        let count = match run.place {
            Place::Page(_) | Place::Kernel(_) => &mut self.here,
            Place::Untouched => &mut self.untouched,
            Place::Absent(why) => self.absent.entry(why).or_default(),
        };
        *count = count.saturating_add(run.pages);
    }
}

/// What goes into a core file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    /// By ascending address.
    pub(crate) segments: Vec<Segment>,
    /// Pages of bytes, holes among them.
    pub(crate) pages: u64,
    pub(crate) counts: Counts,
    pub(crate) absent: Vec<Absent>,
    /// Stretches of absent pages that `absent` has no room for.
    pub(crate) more_absent: u64,
    /// Pages with bytes of their own.
    content: u64,
}

impl Plan {
    pub(crate) fn new(pages: &Pages<'_>, space: &Space) -> Self {
        let mut plan = Self::default();
        // The same page may be mapped more than once, but hardly all of them.
        let room = pages.system.pages.saturating_mul(2).saturating_add(1 << 16);
        let zeros = zero_page(pages);
        for mapping in &space.mappings {
            let begin = plan.segments.len();
            pages.each(space, mapping, &mut |run| plan.add(mapping, begin, run, zeros, room));
        }
        plan
    }

    fn add(&mut self, mapping: &Mapping, begin: usize, run: Run, zeros: Option<Pfn>, room: u64) {
        let mut run = run;
        let has_content = match run.place {
            Place::Page(pfn) => Some(pfn) != zeros || run.pages > 1,
            Place::Kernel(_) => true,
            Place::Untouched | Place::Absent(_) => false,
        };
        if has_content {
            self.content = self.content.saturating_add(run.pages);
        }
        let full = self.segments.len() >= MAX_SEGMENTS || (has_content && self.content > room);
        if full && !matches!(run.place, Place::Absent(_)) {
            run.place = Place::Absent(Why::TooMuch);
        }
        self.counts.add(&run);
        match run.place {
            Place::Absent(why) => self.add_absent(Absent { start: run.start, pages: run.pages, why }),
            _ => self.add_memory(mapping, begin, &run, has_content),
        }
    }

    fn add_absent(&mut self, absent: Absent) {
        let has_room = self.absent.len() < MAX_ABSENT;
        match self.absent.last_mut() {
            Some(last)
                if last.why == absent.why
                    && last.start.saturating_add(last.pages.saturating_mul(PAGE)) == absent.start =>
            {
                last.pages = last.pages.saturating_add(absent.pages);
            }
            _ if has_room => self.absent.push(absent),
            _ => self.more_absent = self.more_absent.saturating_add(1),
        }
    }

    /// Pages of a mapping, whose first segment is that of number `begin`.
    fn add_memory(&mut self, mapping: &Mapping, begin: usize, run: &Run, has_content: bool) {
        let in_mapping = self.segments.len() > begin;
        let last = self.segments.last_mut().filter(|last| {
            in_mapping && last.start.saturating_add(last.pages.saturating_mul(PAGE)) == run.start
        });
        if let Some(last) = last {
            let joins = match last.at {
                Some(_) => has_content || run.pages < HOLE,
                None => !has_content,
            };
            if joins {
                last.pages = last.pages.saturating_add(run.pages);
                if last.at.is_some() {
                    self.pages = self.pages.saturating_add(run.pages);
                }
                return;
            }
        }
        let right = |flag, bit| if mapping.has(flag) { bit } else { 0 };
        let flags = right(flag::READ, 4) | right(flag::WRITE, 2) | right(flag::EXEC, 1);
        let at = has_content.then_some(self.pages);
        if has_content {
            self.pages = self.pages.saturating_add(run.pages);
        }
        self.segments.push(Segment { start: run.start, pages: run.pages, flags, at });
    }

    /// Where the bytes of an address lie, in bytes from where the first ones lie.
    pub(crate) fn offset(&self, address: u64) -> Option<u64> {
        let next = self.segments.partition_point(|segment| segment.start <= address);
        let segment = self.segments.get(next.checked_sub(1)?)?;
        let ahead = address.checked_sub(segment.start)?;
        let inside = ahead < segment.pages.checked_mul(PAGE)?;
        segment.at.filter(|_| inside)?.checked_mul(PAGE)?.checked_add(ahead)
    }

    /// Pages that turned out not to be readable.
    pub(crate) fn lose(&mut self, start: u64) {
        self.counts.here = self.counts.here.saturating_sub(1);
        let lost = self.counts.absent.entry(Why::NotInDump).or_default();
        *lost = lost.saturating_add(1);
        self.add_absent(Absent { start, pages: 1, why: Why::NotInDump });
    }

    /// Number of segments, with that of the notes.
    pub(crate) fn headers(&self) -> u64 {
        to_u64(self.segments.len()).saturating_add(1)
    }
}

/// `empty_zero_page`: what is read and was never written leads to it.
fn zero_page(pages: &Pages<'_>) -> Option<Pfn> {
    let system = pages.system;
    let at = system.variables.empty_zero_page?;
    let at = system.kernel.translate(at).ok()?;
    Some(system.kernel.page_size().pfn_of(at))
}
