//! Formats that hold memory as it is, run by run, for readers that know nothing of dumps: ELF, LiME, raw.
//!
//! Pages that are left out lie between the runs, so no reader takes them for zeros. Pages of zeros are holes of the
//! file: they take no room and read as what they are. A page that could not be read is such a hole, too; only
//! `result.json` tells it from zeros, for which none of these formats has a sign.

use core::ops::Range;

use crate::addr::{PageSize, Pfn, PfnRange, to_u64, to_usize};
use crate::config::Format;
use crate::dump::pipeline::{Batch, Body};
use crate::dump::plan::Plan;
use crate::dump::{DumpError, DumpWriter, Heartbeat, bitmap};
use crate::format::{elf, lime};
use crate::report::PageCounts;
use crate::sink::Sink;
use crate::source::Core;

/// Segments that an ELF header counts itself. More stand in a section header (PN_XNUM), which volatility3 and older
/// tools do not look at.
const PLAIN_SEGMENTS: usize = 0xfffe;
/// Bytes of page data between two syncs. Also bounds the dirty pages in the capture kernel's page cache.
const SYNC_EVERY: u64 = 16 << 20;

/// The file that is being written.
pub(super) struct SegmentWriter<'a> {
    sink: &'a mut dyn Sink,
    page_size: PageSize,
    layout: Layout,
    /// End of the memory in the file so far.
    end: u64,
    /// End of what has been written: holes may follow.
    written: u64,
    unsynced: u64,
    pending: PageCounts,
    saved: PageCounts,
}

/// How a format places pages in the file.
enum Layout {
    /// Each run has a segment: its pages and the offset of its data.
    Elf(Vec<(PfnRange, u64)>),
    /// Each run has a header; the one that is open, with the header's offset.
    Lime(Option<(PfnRange, u64)>),
    /// At its physical address.
    Raw,
}

impl<'a> SegmentWriter<'a> {
    /// Writes what stands in front of the memory.
    pub(super) fn start(
        sink: &'a mut dyn Sink,
        core: &dyn Core,
        plan: &Plan<'_>,
        format: Format,
        heartbeat: &Heartbeat<'_>,
    ) -> Result<Self, DumpError> {
        let layout = match format {
            Format::Elf => Layout::Elf(Vec::new()),
            Format::Lime => Layout::Lime(None),
            Format::Raw | Format::Kdump | Format::Flattened => Layout::Raw,
        };
        let zero = PageCounts::default();
        let (page_size, pending, saved) = (core.page_size(), zero, zero);
        let mut writer = Self { sink, page_size, layout, end: 0, written: 0, unsynced: 0, pending, saved };
        if format == Format::Elf {
            writer.write_elf_head(core, runs(plan, heartbeat))?;
        }
        Ok(writer)
    }

    /// Header, program headers, notes, and the file's length: no segment ends past it at any time.
    fn write_elf_head(&mut self, core: &dyn Core, runs: Vec<PfnRange>) -> Result<(), DumpError> {
        let count = runs.len().saturating_add(1);
        if count > PLAIN_SEGMENTS {
            log::warn!(
                "{count} segments: volatility3 and older tools will not see them all; LiME has no such limit"
            );
        }
        let notes = notes(core);
        let notes_at = to_u64(elf::head_len(count));
        let data_at = notes_at.saturating_add(to_u64(notes.len()));
        let mut at = data_at.checked_next_multiple_of(self.page_size.bytes()).unwrap_or(data_at);
        let mut head = elf::emit_header(elf::machine_number(core.machine()), count);
        head.extend(elf::emit_note_segment(notes_at, to_u64(notes.len())));
        let mut segments = Vec::with_capacity(runs.len());
        for run in runs {
            let bytes = run.pages().saturating_mul(self.page_size.bytes());
            let paddr = self.page_size.addr_of(run.start()).unwrap_or_default();
            let vaddr = core.mappings().iter().find_map(|&(virt, phys, len)| {
                let ahead = paddr.0.checked_sub(phys.0).filter(|&ahead| ahead < len)?;
                virt.checked_add(ahead)
            });
            head.extend(elf::emit_load_segment(at, vaddr.unwrap_or_default(), paddr, bytes));
            segments.push((run, at));
            at = at.saturating_add(bytes);
        }
        head.extend(elf::emit_section_of_count(count));
        self.layout = Layout::Elf(segments);
        self.write(0, &head, "the ELF headers")?;
        self.write(notes_at, &notes, "the ELF notes")?;
        self.end = at;
        self.fill_to_end()
    }

    /// Where the data of `pfn` goes; pages come in ascending order.
    fn place(&mut self, pfn: Pfn) -> Result<u64, DumpError> {
        let page = self.page_size.bytes();
        let bytes = |pages: u64| pages.saturating_mul(page);
        let at = match &mut self.layout {
            Layout::Raw => bytes(pfn.0),
            Layout::Elf(segments) => {
                let index = segments.partition_point(|(run, _)| run.end() <= pfn);
                segments.get(index).map_or(u64::MAX, |&(run, at)| {
                    at.saturating_add(bytes(pfn.0.saturating_sub(run.start().0)))
                })
            }
            Layout::Lime(Some((run, _))) if run.end() == pfn => {
                *run = PfnRange::new(run.start(), pfn.saturating_add(1)).unwrap_or(*run);
                self.end
            }
            Layout::Lime(_) => {
                self.close_range()?;
                let header = self.end;
                let run = PfnRange::new(pfn, pfn.saturating_add(1));
                self.layout = Layout::Lime(run.map(|run| (run, header)));
                header.saturating_add(to_u64(lime::HEADER_LEN))
            }
        };
        self.end = self.end.max(at.saturating_add(page));
        Ok(at)
    }

    /// LiME: writes the header of the open range, whose length is known now.
    fn close_range(&mut self) -> Result<(), DumpError> {
        let Layout::Lime(open) = &mut self.layout else { return Ok(()) };
        let Some((run, at)) = open.take() else { return Ok(()) };
        let addr = |pfn| self.page_size.addr_of(pfn).map_or(u64::MAX, |addr| addr.0);
        let header = lime::emit(addr(run.start()), addr(run.end()).saturating_sub(1));
        self.write(at, &header, "a range header")
    }

    /// The file may end with pages of zeros.
    fn fill_to_end(&mut self) -> Result<(), DumpError> {
        match self.end.checked_sub(1) {
            Some(last) if self.written < self.end => self.write(last, &[0], "the end of the file"),
            _ => Ok(()),
        }
    }

    fn write(&mut self, at: u64, bytes: &[u8], what: &'static str) -> Result<(), DumpError> {
        self.sink.write_at(at, bytes).map_err(|source| DumpError::Sink { what, source })?;
        self.written = self.written.max(at.saturating_add(to_u64(bytes.len())));
        Ok(())
    }

    fn sync(&mut self) -> Result<(), DumpError> {
        self.unsynced = 0;
        let pages = core::mem::take(&mut self.pending);
        self.sink.sync().map_err(|source| DumpError::Sink { what: "memory", source })?;
        self.saved = self.saved.plus(&pages);
        Ok(())
    }

    fn write_span(&mut self, at: u64, data: &[u8], span: Range<usize>) -> Result<(), DumpError> {
        match data.get(span) {
            Some(bytes) if !bytes.is_empty() => self.write(at, bytes, "memory"),
            _ => Ok(()),
        }
    }
}

impl DumpWriter for SegmentWriter<'_> {
    fn saved(&self) -> PageCounts {
        self.saved
    }

    fn appended(&self) -> PageCounts {
        self.saved.plus(&self.pending)
    }

    fn len(&self) -> u64 {
        self.end
    }

    fn append(&mut self, batch: &Batch) -> Result<(), DumpError> {
        let mut pages = batch.pages.iter().flat_map(|run| run.start().0..run.end().0).map(Pfn);
        // Pages whose places touch go out together.
        let (mut span_at, mut span, mut counts) = (0_u64, 0..0_usize, PageCounts::default());
        for body in &batch.bodies {
            let place = pages.next().map(|pfn| self.place(pfn)).transpose()?;
            match (*body, place) {
                (Body::Data { size, .. }, Some(at)) => {
                    let size = to_usize(u64::from(size));
                    if span_at.saturating_add(to_u64(span.len())) != at {
                        self.write_span(span_at, &batch.data, span.clone())?;
                        (span_at, span) = (at, span.end..span.end);
                    }
                    span.end = span.end.saturating_add(size);
                    counts.written = counts.written.saturating_add(1);
                }
                (Body::Zero, _) => counts.zero = counts.zero.saturating_add(1),
                _ => counts.unreadable = counts.unreadable.saturating_add(1),
            }
        }
        self.write_span(span_at, &batch.data, span)?;
        self.pending = self.pending.plus(&counts);
        self.unsynced = self.unsynced.saturating_add(to_u64(batch.data.len()));
        if self.unsynced >= SYNC_EVERY { self.sync() } else { Ok(()) }
    }

    fn finish(&mut self) -> Result<(), DumpError> {
        self.close_range()?;
        self.fill_to_end()?;
        self.sync()
    }

    fn give_up(&mut self) {
        if let Err(error) = self.close_range().and_then(|()| self.sync()) {
            log::warn!("closing the incomplete dump: {}", crate::log::chain(&error));
        }
    }
}

/// The kept pages as runs.
fn runs(plan: &Plan<'_>, heartbeat: &Heartbeat<'_>) -> Vec<PfnRange> {
    let mut runs: Vec<PfnRange> = Vec::new();
    let mut walk = plan.walk();
    while let Some((unit, _, bits)) = walk.next_unit() {
        heartbeat();
        for run in bitmap::runs(&bits.unwrap_or_default(), unit.start()) {
            match runs.last_mut() {
                Some(last) if last.end() == run.start() => {
                    *last = PfnRange::new(last.start(), run.end()).unwrap_or(*last);
                }
                _ => runs.push(run),
            }
        }
    }
    runs
}

/// The notes, one after the other. One that cannot be read becomes zeros, which readers take as the end of the notes.
fn notes(core: &dyn Core) -> Vec<u8> {
    let mut all = Vec::new();
    for note in &core.notes().notes {
        let mut bytes = vec![0; to_usize(note.len)];
        if let Err(error) = core.read_note_bytes(note.offset, &mut bytes) {
            log::warn!("note at {:#x} of the vmcore: {error}", note.offset);
            bytes.fill(0);
        }
        all.extend(bytes);
    }
    all
}
