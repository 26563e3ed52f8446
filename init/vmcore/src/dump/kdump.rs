//! A kdump-compressed dump, on a sink that can be rewritten, or on a stream by way of
//! [`super::flattened`].
//!
//! Page data is appended in the order in which pages come; descriptors go to their ranks. A
//! descriptor is written only after the data it points to is durable, so what a reader finds after
//! a power cut is true: a page's descriptor is either right or zero, which readers take as "lost".
//! All pages of zeros share one block, at every level. On a stream nothing is written twice: the
//! header comes last, and the descriptors of lost pages never come. There descriptors come before
//! their pages, so that each page that arrives can be found in what was cut behind it.

use std::time::{Duration, Instant};

use crate::dump::codec::Codec;
use crate::dump::notes::Notes;
use crate::dump::pipeline::{Batch, Body};
use crate::dump::plan::Plan;
use crate::dump::{DumpError, DumpWriter, Request};
use crate::filter::order::Turn;
use crate::format::kdump::{Compression, DESC_LEN, Header, Layout, PageDesc};
use crate::report::PageCounts;
use crate::sink::{Sink, SinkError};
use crate::source::{Anomaly, Core};
use base::addr::{Pfn, to_u64, to_usize};
use base::beat;

/// Bytes of descriptors that wait for a sync: 87,381 pages.
const PENDING_DESCS: usize = 2 << 20;
/// A sync at the latest after this time: a power cut loses no more than twice this much work.
const SYNC_EVERY: Duration = Duration::from_secs(2);
/// Bitmap blocks between two beats: 128 GiB of memory with 4 KiB pages.
const HEARTBEAT_BLOCKS: u64 = 1024;

/// The dump that is being written.
pub(super) struct KdumpWriter<'a> {
    sink: &'a mut dyn Sink,
    layout: Layout,
    header: Header,
    /// Made of a dump that ends early: then this one says so, too.
    of_incomplete: bool,
    /// Made of a file, whose pages are all there or lost for good; broken memory is part of what a
    /// machine had.
    is_file: bool,
    /// Where the block lies that all zero pages share.
    zero: PageDesc,
    /// Where the next page data goes.
    end: u64,
    synced: Instant,
    descs: Vec<u8>,
    /// Where the descriptors in `descs` go: (rank of the first, number).
    places: Vec<(u64, u64)>,
    /// Whose turn it is, and where the dump ended when the first ones had theirs.
    turn: Turn,
    has_vital: bool,
    vital_len: Option<u64>,
    /// Pages whose descriptors are in `descs`.
    pending: PageCounts,
    /// Pages whose descriptors have been written since the last sync.
    unconfirmed: PageCounts,
    /// Pages whose data and descriptors are durable.
    saved: PageCounts,
}

impl<'a> KdumpWriter<'a> {
    /// The metadata pass: header (INCOMPLETE), notes, bitmaps, and the block of zeros.
    pub(super) fn start(
        sink: &'a mut dyn Sink,
        core: &dyn Core,
        plan: &Plan<'_>,
        request: &Request,
    ) -> Result<Self, DumpError> {
        let notes = Notes::new(core, &request.info);
        let layout = Layout::new(core.page_size(), plan.max_pfn().0, notes.len())?;
        let header = header(core, &layout, &notes, request);
        let data = layout.data_offset(plan.kept()).ok_or(DumpError::Place { what: "page data" })?;
        let size = u32::try_from(layout.page_size.bytes()).unwrap_or(u32::MAX);
        let zero = PageDesc { offset: data, size, flags: Compression::Raw.flag() };
        let end = data.saturating_add(layout.page_size.bytes());
        let descs = Vec::with_capacity(PENDING_DESCS);
        let has_vital = plan.order().is_complete();
        let mut writer = Self {
            sink,
            layout,
            header,
            of_incomplete: core.left_out().incomplete || core.anomalies().iter().any(Anomaly::is_loss),
            is_file: core.is_file(),
            zero,
            end,
            synced: Instant::now(),
            descs,
            places: Vec::new(),
            turn: Turn::Rest,
            has_vital,
            vital_len: None,
            pending: PageCounts::default(),
            saved: PageCounts::default(),
            unconfirmed: PageCounts::default(),
        };
        // A promise of room for everything before the data: later, descriptors must not fail where
        // data fitted.
        writer.sink.reserve(end).map_err(failed("room for bitmaps and page descriptors"))?;
        if writer.sink.is_rewritable() {
            writer.write_headers()?;
        } else {
            let (block0, sub) = writer.layout.emit_headers(&writer.header);
            writer.sink.announce(&block0, &sub).map_err(failed("the header"))?;
        }
        notes.copy(layout.notes_offset(), |at, bytes| {
            writer.sink.write_at(at, bytes).map_err(failed("the ELF notes"))
        })?;
        writer.write_bitmaps(plan)?;
        let zeros = vec![0; layout.page_size.in_memory()];
        writer.sink.write_at(data, &zeros).map_err(failed("the zero page"))?;
        writer.sink.sync().map_err(failed("headers and bitmaps"))?;
        Ok(writer)
    }

    /// Makes the data durable, then writes its descriptors.
    fn checkpoint(&mut self) -> Result<(), DumpError> {
        self.sync("page data")?;
        self.synced = Instant::now();
        let result = self.write_descs();
        self.descs.clear();
        self.places.clear();
        let pages = core::mem::take(&mut self.pending);
        result?;
        self.unconfirmed = self.unconfirmed.plus(&pages);
        Ok(())
    }

    /// Adds the descriptors of a batch to those that wait, and gives where its data ends and what
    /// its pages are.
    fn describe(&mut self, batch: &Batch) -> (u64, PageCounts) {
        let (mut at, mut pages) = (self.end, PageCounts::default());
        for body in &batch.bodies {
            let (desc, counter) = match *body {
                Body::Data { compression, size } => {
                    let desc = PageDesc { offset: at, size, flags: compression.flag() };
                    at = at.saturating_add(u64::from(size));
                    (desc, &mut pages.written)
                }
                Body::Zero => (self.zero, &mut pages.zero),
                Body::Unreadable => (PageDesc::default(), &mut pages.unreadable),
            };
            *counter = counter.saturating_add(1);
            self.descs.extend_from_slice(&desc.emit());
        }
        for run in &batch.runs {
            let (rank, count) = (run.rank, run.pages.pages());
            match self.places.last_mut() {
                Some((first, so_far)) if first.saturating_add(*so_far) == rank => {
                    *so_far = so_far.saturating_add(count);
                }
                _ => self.places.push((rank, count)),
            }
        }
        (at, pages)
    }

    /// Sends the descriptors of a batch, then its data. If the data does not go out, the
    /// descriptors are taken back, as far as that can be: nothing may lead to data that is not
    /// there.
    fn stream_batch(&mut self, batch: &Batch) -> Result<(), DumpError> {
        let descs = self.write_descs();
        let sent =
            descs.and_then(|()| self.sink.write_at(self.end, batch.data()).map_err(failed("page data")));
        if sent.is_err() {
            self.descs.fill(0);
            if let Err(error) = self.write_descs() {
                log::debug!("descriptors of pages that are lost: {}", base::log::chain(&error));
            }
        }
        self.descs.clear();
        self.places.clear();
        sent
    }

    fn write_descs(&mut self) -> Result<(), DumpError> {
        let mut from = 0_usize;
        for &(rank, count) in &self.places {
            let end = from.saturating_add(to_usize(count).saturating_mul(DESC_LEN));
            let descs = self.descs.get(from..end).unwrap_or_default();
            let offset =
                self.layout.desc_offset(rank).ok_or(DumpError::Place { what: "page descriptors" })?;
            self.sink.write_at(offset, descs).map_err(failed("page descriptors"))?;
            from = end;
        }
        Ok(())
    }

    /// Ends the turn of the pages that came first: all of it is durable.
    fn end_turn(&mut self, next: Turn) -> Result<(), DumpError> {
        if self.turn == Turn::First && self.has_vital {
            self.checkpoint()?;
            self.sync("the vital part")?;
            log::info!(
                "dump: the vital part is saved, {} MiB; a dump cut short from here on opens",
                self.end >> 20
            );
            self.vital_len = Some(self.end);
        }
        self.turn = next;
        Ok(())
    }

    /// Makes everything written so far durable. The kernel reports lost writes once, and a later
    /// sync succeeds without them: after an error what was not durable is gone, and no descriptor
    /// may point to it.
    fn sync(&mut self, what: &'static str) -> Result<(), DumpError> {
        let result = self.sink.sync().map_err(failed(what));
        let pages = core::mem::take(&mut self.unconfirmed);
        if result.is_ok() {
            self.saved = self.saved.plus(&pages);
        } else {
            self.descs.clear();
            self.places.clear();
            self.pending = PageCounts::default();
        }
        result
    }

    fn write_headers(&mut self) -> Result<(), DumpError> {
        let (block0, sub) = self.layout.emit_headers(&self.header);
        self.sink.write_at(0, &block0).map_err(failed("the header"))?;
        self.sink.write_at(self.layout.page_size.bytes(), &sub).map_err(failed("the sub header"))
    }

    /// Both bitmaps: which pages exist, which have a descriptor.
    fn write_bitmaps(&mut self, plan: &Plan<'_>) -> Result<(), DumpError> {
        let block_len = self.layout.page_size.in_memory();
        let mut block = vec![0; block_len];
        let bits = self.layout.page_size.bytes().saturating_mul(8);
        for index in 0..self.layout.bitmap_blocks {
            if index.is_multiple_of(HEARTBEAT_BLOCKS) {
                beat::alive();
            }
            plan.present_bits(Pfn(index.saturating_mul(bits)), &mut block);
            let at = self.layout.bitmap1_offset().saturating_add(index.saturating_mul(to_u64(block_len)));
            self.write_bits(at, &block)?;
        }
        plan.each_unit(|unit, bits| {
            beat::alive();
            self.write_bits(self.layout.bitmap2_offset().saturating_add(unit.start().0 >> 3), bits)
        })
    }

    /// A machine with its memory far up has bitmaps of mostly zeros, which a sink holds already.
    fn write_bits(&mut self, at: u64, bits: &[u8]) -> Result<(), DumpError> {
        if bits.iter().all(|&byte| byte == 0) {
            return Ok(());
        }
        self.sink.write_at(at, bits).map_err(failed("the bitmaps"))
    }
}

impl DumpWriter for KdumpWriter<'_> {
    fn saved(&self) -> PageCounts {
        self.saved
    }

    fn appended(&self) -> PageCounts {
        self.saved.plus(&self.unconfirmed).plus(&self.pending)
    }

    fn len(&self) -> u64 {
        self.end
    }

    fn vital_len(&self) -> Option<u64> {
        self.vital_len
    }

    fn append(&mut self, batch: &Batch) -> Result<bool, DumpError> {
        let mut syncs = batch.turn != self.turn;
        if syncs {
            self.end_turn(batch.turn)?;
        }
        let new_descs = batch.bodies.len().saturating_mul(DESC_LEN);
        let full = self.descs.len().saturating_add(new_descs) > PENDING_DESCS;
        if full || self.synced.elapsed() >= SYNC_EVERY {
            self.checkpoint()?;
            syncs = true;
        }
        let is_stream = !self.sink.is_rewritable();
        if !is_stream {
            self.sink.write_at(self.end, batch.data()).map_err(failed("page data"))?;
        }
        let (end, pages) = self.describe(batch);
        if is_stream {
            self.stream_batch(batch)?;
        }
        self.pending = self.pending.plus(&pages);
        self.end = end;
        Ok(syncs)
    }

    /// The header's INCOMPLETE falls with the last write. It goes to the disk with the last
    /// descriptors: the file has not got its final name yet.
    fn finish(&mut self) -> Result<(), DumpError> {
        self.end_turn(Turn::Rest)?;
        self.checkpoint()?;
        self.header.incomplete = self.of_incomplete || (self.is_file && self.saved.unreadable > 0);
        self.write_headers()?;
        self.sync("the final header")
    }

    /// Saves descriptors of the data that is there. What was to be the last write may have got
    /// through: the header says INCOMPLETE again.
    fn give_up(&mut self) {
        self.header.incomplete = true;
        let mark = if self.sink.is_rewritable() { self.write_headers() } else { Ok(()) };
        let rest = mark.and(self.checkpoint()).and_then(|()| self.sync("the last page descriptors"));
        let ended = if self.sink.is_rewritable() { Ok(()) } else { self.write_headers() };
        if let Err(error) = rest.and(ended) {
            log::warn!("closing the incomplete dump: {}", base::log::chain(&error));
        }
    }
}

/// The header of a dump that has just begun.
fn header(core: &dyn Core, layout: &Layout, notes: &Notes<'_>, request: &Request) -> Header {
    let info = &request.info;
    let notes_at = layout.notes_offset();
    Header {
        utsname: request.utsname.clone(),
        crash_time: info.crash_time().unwrap_or(0),
        incomplete: true,
        excluded_vmemmap: request.exclude.unused_vmemmap() || core.left_out().vmemmap,
        compression_flag: Codec::flag(request.compress),
        // Crash takes 0 for damage; after a planned switch there are no notes of CPUs.
        nr_cpus: core.notes().cpus().max(1),
        phys_base: info.number("phys_base").unwrap_or(0).cast_unsigned(),
        dump_level: u32::from(request.exclude.level()) | core.left_out().level,
        vmcoreinfo: notes.vmcoreinfo(notes_at),
        notes: (notes_at, notes.len()),
    }
}

fn failed(what: &'static str) -> impl Fn(SinkError) -> DumpError {
    move |source| DumpError::Sink { what, source }
}
