//! Formats that hold memory as it is, run by run, for readers that know nothing of dumps: ELF,
//! LiME, raw.
//!
//! Pages that are left out lie between the runs, so no reader takes them for zeros. Pages of zeros
//! are holes of the file: they take no room and read as what they are. A page that could not be
//! read is such a hole, too, except in LiME, where it is left out; only `result.json` tells it from
//! zeros, for which ELF and raw have no sign.
//!
//! A header is written only after the memory it stands for is durable, so it never promises what is
//! not there.

use crate::budget::Budget;
use crate::dump::notes::Notes;
use crate::dump::pipeline::{Batch, Body};
use crate::dump::places::{ElfPlaces, LimePlaces, Places};
use crate::dump::plan::Plan;
use crate::dump::{DumpError, DumpWriter, Request, bitmap};
use crate::format::{elf, lime};
use crate::report::PageCounts;
use crate::sink::Sink;
use crate::source::Core;
use base::addr::{PageSize, Pfn, PfnRange, to_u64, to_usize};
use base::beat;
use base::config::Format;

/// Bytes of memory that a run costs while an ELF is written: itself and its segment, in vectors
/// that double.
const BYTES_PER_RUN: u64 = 128;
/// Memory that is always taken for runs: 128 Ki of them.
const MIN_RUN_BYTES: u64 = 16 << 20;
/// Segments that an ELF header counts itself. More stand in a section header (PN_XNUM), which
/// volatility3 and older tools do not look at.
const PLAIN_SEGMENTS: usize = 0xfffe;
/// Bytes of page data between two syncs.
const SYNC_EVERY: u64 = 16 << 20;
/// Pages between two syncs where most are zeros: bounds the ranges that wait for their headers.
const SYNC_EVERY_PAGES: u64 = 64 << 10;

/// The file that is being written.
pub(super) struct SegmentWriter<'a> {
    sink: &'a mut dyn Sink,
    page_size: PageSize,
    places: Places,
    /// All that was appended. It may end with zeros, for which nothing was written.
    appended: Mark,
    /// Up to the last byte that was written.
    landed: Mark,
    /// Up to where memory is durable.
    durable: Mark,
    /// What the headers say.
    claimed: Mark,
    /// What the headers said at the last sync.
    saved: Mark,
    unsynced: u64,
}

/// How far the file has come.
#[derive(Clone, Copy, Debug, Default)]
struct Mark {
    pages: PageCounts,
    /// The page after the last one.
    next: Pfn,
    /// Length of the file.
    end: u64,
}

impl<'a> SegmentWriter<'a> {
    /// Writes what stands in front of the memory.
    pub(super) fn start(
        sink: &'a mut dyn Sink,
        core: &dyn Core,
        plan: &Plan<'_>,
        request: &Request,
    ) -> Result<Self, DumpError> {
        let page_size = core.page_size();
        let notes = Notes::new(core, &request.info);
        let places = match request.format {
            Format::Elf => {
                let (machine, len) = (elf::machine_number(core.machine()), notes.len());
                let runs = runs(plan);
                Places::Elf(ElfPlaces::new(page_size, machine, len, &runs, core.mappings()))
            }
            Format::Lime => Places::Lime(LimePlaces::new(page_size)),
            Format::Raw | Format::Kdump | Format::Flattened => Places::Raw(page_size),
        };
        let zero = Mark::default();
        let (appended, landed, durable, claimed, saved) = (zero, zero, zero, zero, zero);
        let mut writer =
            Self { sink, page_size, places, appended, landed, durable, claimed, saved, unsynced: 0 };
        writer.write_elf_head(&notes)?;
        Ok(writer)
    }

    /// The notes, and headers of a core without memory.
    fn write_elf_head(&mut self, notes: &Notes<'_>) -> Result<(), DumpError> {
        let Places::Elf(places) = &self.places else { return Ok(()) };
        if places.segments() > PLAIN_SEGMENTS {
            log::warn!(
                "{} segments: volatility3 and older tools will not see them all; LiME has no such limit",
                places.segments()
            );
        }
        let (notes_at, data) = (places.notes_at(), places.data_at());
        // A promise of room for the headers: later, they must not fail where memory fitted.
        let reserved = self.sink.reserve(data);
        reserved.map_err(|source| DumpError::Sink { what: "room for the ELF headers", source })?;
        notes.copy(notes_at, |at, bytes| self.write(at, bytes, "the ELF notes"))?;
        self.appended.end = data;
        (self.landed.end, self.durable.end) = (data, data);
        self.claim()?;
        self.sync()
    }

    /// Makes the memory durable, then writes the headers that stand for it.
    fn checkpoint(&mut self) -> Result<(), DumpError> {
        if self.landed.end < self.appended.end {
            // The file ends with zeros, which were not written.
            self.write(self.appended.end.saturating_sub(1), &[0], "the end of the file")?;
        }
        self.landed = self.appended;
        self.sync()?;
        self.claim()
    }

    /// The kernel reports lost writes once, and a later sync succeeds without them: after an error
    /// what was not durable is gone.
    fn sync(&mut self) -> Result<(), DumpError> {
        self.unsynced = 0;
        if let Err(source) = self.sink.sync() {
            (self.landed, self.claimed) = (self.durable, self.saved);
            return Err(DumpError::Sink { what: "memory", source });
        }
        self.durable = self.landed;
        self.saved = self.claimed;
        self.places.confirm(self.claimed.next);
        Ok(())
    }

    fn claim(&mut self) -> Result<(), DumpError> {
        for (at, bytes) in self.places.headers(self.durable.next) {
            self.write(at, &bytes, "the headers")?;
        }
        self.claimed = self.durable;
        Ok(())
    }

    fn write(&mut self, at: u64, bytes: &[u8], what: &'static str) -> Result<(), DumpError> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.sink.write_at(at, bytes).map_err(|source| DumpError::Sink { what, source })
    }

    fn write_span(&mut self, span: &Span, batch: &Batch) -> Result<(), DumpError> {
        let bytes = batch.data().get(span.from..span.to).unwrap_or_default();
        if !bytes.is_empty() {
            self.write(span.at, bytes, "memory")?;
            self.landed = span.mark;
        }
        Ok(())
    }

    /// Counts a page, which reaches to `end`.
    fn count(&mut self, pfn: Option<Pfn>, end: Option<u64>, body: Body) {
        let mark = &mut self.appended;
        let counter = match (body, end) {
            (Body::Data { .. }, Some(_)) => &mut mark.pages.written,
            (Body::Zero, Some(_)) => &mut mark.pages.zero,
            _ => &mut mark.pages.unreadable,
        };
        *counter = counter.saturating_add(1);
        mark.next = pfn.map_or(mark.next, |pfn| pfn.saturating_add(1));
        mark.end = end.map_or(mark.end, |end| mark.end.max(end));
    }
}

/// Pages whose places touch, which go out together.
#[derive(Clone, Copy, Debug, Default)]
struct Span {
    at: u64,
    /// Where in the batch's data.
    from: usize,
    to: usize,
    /// What is in the file when this is.
    mark: Mark,
}

impl Span {
    fn end(&self) -> u64 {
        self.at.saturating_add(to_u64(self.to.saturating_sub(self.from)))
    }
}

impl DumpWriter for SegmentWriter<'_> {
    fn saved(&self) -> PageCounts {
        self.saved.pages
    }

    fn appended(&self) -> PageCounts {
        self.appended.pages
    }

    fn len(&self) -> u64 {
        self.appended.end
    }

    fn append(&mut self, batch: &Batch) -> Result<bool, DumpError> {
        let mut pages = batch.runs.iter().flat_map(|run| run.pages.start().0..run.pages.end().0).map(Pfn);
        let (mut span, mut read) = (Span::default(), 0_usize);
        for &body in &batch.bodies {
            let pfn = pages.next();
            let left_out = body == Body::Unreadable && self.places.leaves_out_unreadable();
            let place = pfn.filter(|_| !left_out).and_then(|pfn| self.places.place(pfn));
            let end = place.map(|at| at.saturating_add(self.page_size.bytes()));
            if let Some(at) = place.and(pfn).and_then(|pfn| self.places.header_of_new(pfn)) {
                self.write_span(&core::mem::take(&mut span), batch)?;
                self.write(at, &[0; lime::HEADER_LEN], "room for a range header")?;
            }
            self.count(pfn, end, body);
            let Body::Data { size, .. } = body else { continue };
            let from = read;
            read = read.saturating_add(to_usize(u64::from(size)));
            let Some(at) = place else { continue };
            if span.end() != at || span.to != from {
                self.write_span(&span, batch)?;
                span = Span { at, from, to: from, mark: span.mark };
            }
            (span.to, span.mark) = (read, self.appended);
        }
        self.write_span(&span, batch)?;
        self.unsynced = self.unsynced.saturating_add(to_u64(batch.data().len()));
        let waiting = self.appended.pages.total().saturating_sub(self.claimed.pages.total());
        let syncs = self.unsynced >= SYNC_EVERY || waiting >= SYNC_EVERY_PAGES;
        if syncs {
            self.checkpoint()?;
        }
        Ok(syncs)
    }

    fn finish(&mut self) -> Result<(), DumpError> {
        self.checkpoint()?;
        self.sync()
    }

    /// Cuts the file behind what landed, and makes the headers say that.
    fn give_up(&mut self) {
        let end = self.landed.end;
        let mut rest = || {
            self.sync()?;
            let what = "the end of the file";
            self.sink.truncate(self.durable.end).map_err(|source| DumpError::Sink { what, source })?;
            self.claim()?;
            self.sync()
        };
        if let Err(error) = rest() {
            log::warn!("closing the incomplete dump at {end} bytes: {}", base::log::chain(&error));
        }
        self.appended = self.saved;
    }
}

/// Whether the segments of an ELF fit in the memory that a plan may take.
pub(super) fn fits(plan: &Plan<'_>, budget: &Budget) -> bool {
    let mut count = 0_u64;
    each_run(plan, |_| count = count.saturating_add(1));
    let fits = count.saturating_mul(BYTES_PER_RUN) <= budget.plan.max(MIN_RUN_BYTES);
    if !fits {
        log::warn!(
            "{count} runs of pages are too many for ELF in the memory there is: writing kdump instead"
        );
    }
    fits
}

/// The kept pages as runs.
pub(super) fn runs(plan: &Plan<'_>) -> Vec<PfnRange> {
    let mut runs = Vec::new();
    each_run(plan, |run| runs.push(run));
    runs
}

/// Calls `each` with the runs of kept pages, in order; runs that touch are one.
fn each_run(plan: &Plan<'_>, mut each: impl FnMut(PfnRange)) {
    let mut open: Option<PfnRange> = None;
    let Ok(()) = plan.each_unit(|unit, bits| {
        beat::alive();
        for run in bitmap::runs(bits, unit.start()) {
            let joined = open.filter(|open| open.end() == run.start());
            let joined = joined.and_then(|open| PfnRange::new(open.start(), run.end()));
            if joined.is_none() {
                open.into_iter().for_each(&mut each);
            }
            open = joined.or(Some(run));
        }
        Ok::<(), core::convert::Infallible>(())
    });
    open.into_iter().for_each(each);
}

#[cfg(test)]
mod tests;
