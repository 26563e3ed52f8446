//! Formats that hold memory as it is, for a sink that takes bytes from front to back only, such as
//! a pipe: the headers come first and promise all pages that the dump is to have, and pages of
//! zeros are written. A page that could not be read is zeros, too, and is counted.

use std::collections::VecDeque;

use crate::dump::notes::Notes;
use crate::dump::pipeline::{Batch, Body};
use crate::dump::places::{ElfPlaces, Places};
use crate::dump::plan::Plan;
use crate::dump::segments::runs;
use crate::dump::{DumpError, DumpWriter, Request};
use crate::format::{elf, lime};
use crate::report::PageCounts;
use crate::sink::Sink;
use crate::source::Core;
use base::addr::{PageSize, Pfn, PfnRange, to_u64, to_usize};
use base::config::Format;

/// Bytes of zeros that are written at a time.
const ZEROS: usize = 8 << 10;

/// The dump that is being written.
pub(super) struct InOrder<'a> {
    sink: &'a mut dyn Sink,
    page_size: PageSize,
    places: Option<Places>,
    /// Of LiME: ranges whose headers have not been written.
    ranges: VecDeque<PfnRange>,
    at: u64,
    pages: PageCounts,
    saved: PageCounts,
}

impl<'a> InOrder<'a> {
    /// Writes what stands in front of the memory.
    pub(super) fn start(
        sink: &'a mut dyn Sink,
        core: &dyn Core,
        plan: &Plan<'_>,
        request: &Request,
    ) -> Result<Self, DumpError> {
        let page_size = core.page_size();
        let (pages, saved) = (PageCounts::default(), PageCounts::default());
        let mut writer = Self { sink, page_size, places: None, ranges: VecDeque::new(), at: 0, pages, saved };
        match request.format {
            Format::Lime => writer.ranges = runs(plan).into(),
            Format::Elf => {
                let notes = Notes::new(core, &request.info);
                let machine = elf::machine_number(core.machine());
                let places = ElfPlaces::new(page_size, machine, notes.len(), &runs(plan), core.mappings());
                let (notes_at, data) = (places.notes_at(), places.data_at());
                let places = Places::Elf(places);
                let mut headers = places.headers(Pfn(u64::MAX));
                headers.sort_by_key(|&(at, _)| at);
                for (at, bytes) in headers {
                    writer.write(at, &bytes, "the headers")?;
                }
                notes.copy(notes_at, |at, bytes| writer.write(at, bytes, "the ELF notes"))?;
                writer.zeros(data)?;
                writer.places = Some(places);
            }
            _ => writer.places = Some(Places::Raw(page_size)),
        }
        Ok(writer)
    }

    /// Writes zeros up to offset `end`.
    fn zeros(&mut self, end: u64) -> Result<(), DumpError> {
        let zeros = [0; ZEROS];
        while self.at < end {
            let len = to_usize(end.saturating_sub(self.at)).min(ZEROS);
            self.push(zeros.get(..len).unwrap_or_default(), "zeros")?;
        }
        Ok(())
    }

    fn write(&mut self, at: u64, bytes: &[u8], what: &'static str) -> Result<(), DumpError> {
        self.zeros(at)?;
        self.push(bytes, what)
    }

    fn push(&mut self, bytes: &[u8], what: &'static str) -> Result<(), DumpError> {
        self.sink.write_at(self.at, bytes).map_err(|source| DumpError::Sink { what, source })?;
        self.at = self.at.saturating_add(to_u64(bytes.len()));
        Ok(())
    }

    /// Writes a page, with the header of the range that it begins. `None` is a page of zeros.
    fn page(&mut self, pfn: Pfn, bytes: Option<&[u8]>) -> Result<(), DumpError> {
        if let Some(range) = self.ranges.front().copied().filter(|range| range.start() <= pfn) {
            self.ranges.pop_front();
            let addr = |pfn| self.page_size.addr_of(pfn).map_or(u64::MAX, |addr| addr.0);
            let header = lime::emit(addr(range.start()), addr(range.end()).saturating_sub(1));
            self.push(&header, "the header of a range")?;
        }
        let place = self.places.as_mut().map(|places| places.place(pfn));
        match place {
            Some(None) => return Err(DumpError::Place { what: "a page" }),
            Some(Some(at)) => self.zeros(at)?,
            None => (),
        }
        match bytes {
            Some(bytes) => self.push(bytes, "memory"),
            None => self.zeros(self.at.saturating_add(self.page_size.bytes())),
        }
    }
}

impl DumpWriter for InOrder<'_> {
    fn saved(&self) -> PageCounts {
        self.saved
    }

    fn appended(&self) -> PageCounts {
        self.pages
    }

    fn len(&self) -> u64 {
        self.at
    }

    fn append(&mut self, batch: &Batch) -> Result<bool, DumpError> {
        let mut pages = batch.runs.iter().flat_map(|run| run.pages.start().0..run.pages.end().0).map(Pfn);
        let mut data = batch.data();
        for &body in &batch.bodies {
            let Some(pfn) = pages.next() else { break };
            let (bytes, counter) = match body {
                Body::Data { size, .. } => {
                    let (page, rest) = data.split_at(to_usize(size.into()).min(data.len()));
                    data = rest;
                    (Some(page), &mut self.pages.written)
                }
                Body::Zero => (None, &mut self.pages.zero),
                Body::Unreadable => (None, &mut self.pages.unreadable),
            };
            *counter = counter.saturating_add(1);
            self.page(pfn, bytes)?;
        }
        self.saved = self.pages;
        Ok(false)
    }

    fn finish(&mut self) -> Result<(), DumpError> {
        self.sink.sync().map_err(|source| DumpError::Sink { what: "the end of the stream", source })
    }

    /// What is out is out, and the reader sees that the end is missing.
    fn give_up(&mut self) {}
}
