//! A kdump-compressed dump, on a sink that can be rewritten, or on a stream by way of [`super::flattened`].
//!
//! Page data is appended; descriptors go to their ranks. A descriptor is written only after the data it points to
//! is durable, so what a reader finds after a power cut is true: a page's descriptor is either right or zero,
//! which readers take as "lost". On a stream nothing is written twice: the header comes last.

use crate::addr::{Pfn, to_u64, to_usize};
use crate::dump::codec::Codec;
use crate::dump::pipeline::{Batch, Body};
use crate::dump::plan::Plan;
use crate::dump::{DumpError, DumpWriter, Heartbeat, Request, SYNC_EVERY, notes};
use crate::format::kdump::{Compression, DESC_LEN, Header, Layout, PageDesc};
use crate::format::note::NoteKind;
use crate::report::PageCounts;
use crate::sink::{Sink, SinkError};
use crate::source::Core;

/// Bytes of descriptors that wait for a sync: 43,690 pages.
const PENDING_DESCS: usize = 1 << 20;
/// Bitmap blocks between two heartbeats: 128 GiB of memory with 4 KiB pages.
const HEARTBEAT_BLOCKS: u64 = 1024;
/// Bytes of zeros that are written at a time.
const ZEROS: u64 = 64 << 10;

/// The dump that is being written.
pub(super) struct KdumpWriter<'a> {
    sink: &'a mut dyn Sink,
    layout: Layout,
    header: Header,
    /// Pages that get a descriptor.
    kept: u64,
    /// Made of a dump that ends early: then this one says so, too.
    of_incomplete: bool,
    /// Where the block lies that all zero pages share.
    zero: PageDesc,
    /// Where the next page data goes.
    end: u64,
    unsynced: u64,
    /// Rank of the first descriptor in `descs`.
    first_rank: u64,
    descs: Vec<u8>,
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
        heartbeat: &Heartbeat<'_>,
    ) -> Result<Self, DumpError> {
        let layout = Layout::new(core.page_size(), plan.max_pfn().0, core.notes().len())?;
        let header = header(core, &layout, request);
        let data = layout.data_offset(plan.kept()).unwrap_or(u64::MAX);
        let size = u32::try_from(layout.page_size.bytes()).unwrap_or(u32::MAX);
        let zero = PageDesc { offset: data, size, flags: Compression::Raw.flag() };
        let end = if request.finds_zeros() { data.saturating_add(layout.page_size.bytes()) } else { data };
        let descs = Vec::with_capacity(PENDING_DESCS);
        let mut writer = Self {
            sink,
            layout,
            header,
            kept: plan.kept(),
            of_incomplete: core.left_out().incomplete,
            zero,
            end,
            unsynced: 0,
            first_rank: 0,
            descs,
            pending: PageCounts::default(),
            saved: PageCounts::default(),
            unconfirmed: PageCounts::default(),
        };
        // A promise of room for everything before the data: later, descriptors must not fail where data fitted.
        writer.sink.reserve(end).map_err(failed("room for bitmaps and page descriptors"))?;
        if writer.sink.is_rewritable() {
            writer.write_headers()?;
        }
        notes::copy(core, layout.notes_offset(), |at, bytes| {
            writer.sink.write_at(at, bytes).map_err(failed("the ELF notes"))
        })?;
        writer.write_bitmaps(plan, heartbeat)?;
        if end > data {
            let zeros = vec![0; layout.page_size.in_memory()];
            writer.sink.write_at(data, &zeros).map_err(failed("the zero page"))?;
        } else if let Some(last) = data.checked_sub(1).filter(|_| writer.sink.is_rewritable()) {
            // Readers refuse a file that ends before its bitmaps do.
            writer.sink.write_at(last, &[0]).map_err(failed("room for page data"))?;
        }
        writer.sink.sync().map_err(failed("headers and bitmaps"))?;
        Ok(writer)
    }

    /// Makes the data durable, then writes its descriptors.
    fn checkpoint(&mut self) -> Result<(), DumpError> {
        self.sync("page data")?;
        self.unsynced = 0;
        if let Some(offset) = self.layout.desc_offset(self.first_rank).filter(|_| !self.descs.is_empty()) {
            let result = self.sink.write_at(offset, &self.descs).map_err(failed("page descriptors"));
            self.descs.clear();
            let pages = core::mem::take(&mut self.pending);
            result?;
            self.unconfirmed = self.unconfirmed.plus(&pages);
        }
        Ok(())
    }

    /// Makes everything written so far durable. The kernel reports lost writes once, and a later sync succeeds
    /// without them: after an error what was not durable is gone, and no descriptor may point to it.
    fn sync(&mut self, what: &'static str) -> Result<(), DumpError> {
        let result = self.sink.sync().map_err(failed(what));
        let pages = core::mem::take(&mut self.unconfirmed);
        if result.is_ok() {
            self.saved = self.saved.plus(&pages);
        } else {
            self.descs.clear();
            self.pending = PageCounts::default();
        }
        result
    }

    /// Ends a stream early: the header, which takes little room, and the descriptors that are missing, as those of
    /// lost pages.
    fn end_stream(&mut self) -> Result<(), DumpError> {
        self.write_headers()?;
        let mut rank = self.appended().total();
        let zeros = vec![0; PENDING_DESCS];
        while rank < self.kept {
            let pages = self.kept.saturating_sub(rank).min(to_u64(PENDING_DESCS / DESC_LEN));
            let bytes = zeros.get(..to_usize(pages).saturating_mul(DESC_LEN)).unwrap_or_default();
            let offset = self.layout.desc_offset(rank).unwrap_or(u64::MAX);
            self.sink.write_at(offset, bytes).map_err(failed("page descriptors"))?;
            rank = rank.saturating_add(pages);
        }
        Ok(())
    }

    fn write_headers(&mut self) -> Result<(), DumpError> {
        let (block0, sub) = self.layout.emit_headers(&self.header);
        self.sink.write_at(0, &block0).map_err(failed("the header"))?;
        self.sink.write_at(self.layout.page_size.bytes(), &sub).map_err(failed("the sub header"))
    }

    /// Both bitmaps: which pages exist, which have a descriptor.
    fn write_bitmaps(&mut self, plan: &Plan<'_>, heartbeat: &Heartbeat<'_>) -> Result<(), DumpError> {
        let block_len = self.layout.page_size.in_memory();
        let mut block = vec![0; block_len];
        let bits = self.layout.page_size.bytes().saturating_mul(8);
        for index in 0..self.layout.bitmap_blocks {
            if index.is_multiple_of(HEARTBEAT_BLOCKS) {
                heartbeat();
            }
            plan.present_bits(Pfn(index.saturating_mul(bits)), &mut block);
            let at = self.layout.bitmap1_offset().saturating_add(index.saturating_mul(to_u64(block_len)));
            self.write_bits(at, &block)?;
        }
        let mut walk = plan.walk();
        let mut written = self.layout.bitmap2_offset();
        while let Some((unit, kept, unit_bits)) = walk.next_unit() {
            heartbeat();
            let unit_bits = unit_bits.unwrap_or_else(|| plan.stand_in(unit, kept));
            let at = self.layout.bitmap2_offset().saturating_add(unit.start().0 >> 3);
            self.fill_gap(written, at)?;
            self.write_bits(at, &unit_bits)?;
            written = at.saturating_add(to_u64(unit_bits.len()));
        }
        self.fill_gap(written, self.layout.descs_offset())
    }

    /// Writes zeros where a sink does not begin with them.
    fn fill_gap(&mut self, from: u64, to: u64) -> Result<(), DumpError> {
        let block = vec![0; to_usize(ZEROS)];
        let mut at = from;
        while at < to && !self.sink.starts_zeroed() {
            let len = to.saturating_sub(at).min(ZEROS);
            let bytes = block.get(..to_usize(len)).unwrap_or_default();
            self.sink.write_at(at, bytes).map_err(failed("the bitmaps"))?;
            at = at.saturating_add(len);
        }
        Ok(())
    }

    /// A machine with its memory far up has bitmaps of mostly zeros, which a new file holds already.
    fn write_bits(&mut self, at: u64, bits: &[u8]) -> Result<(), DumpError> {
        if bits.iter().all(|&byte| byte == 0) && self.sink.starts_zeroed() {
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

    fn append(&mut self, batch: &Batch) -> Result<(), DumpError> {
        let new_descs = batch.bodies.len().saturating_mul(DESC_LEN);
        if self.unsynced >= SYNC_EVERY || self.descs.len().saturating_add(new_descs) > PENDING_DESCS {
            self.checkpoint()?;
        }
        if self.descs.is_empty() {
            self.first_rank = batch.rank;
        }
        self.sink.write_at(self.end, &batch.data).map_err(failed("page data"))?;
        let mut at = self.end;
        for body in &batch.bodies {
            let desc = match *body {
                Body::Data { compression, size } => {
                    let desc = PageDesc { offset: at, size, flags: compression.flag() };
                    at = at.saturating_add(u64::from(size));
                    desc
                }
                Body::Zero => self.zero,
                Body::Unreadable => PageDesc::default(),
            };
            let counter = match body {
                Body::Data { .. } => &mut self.pending.written,
                Body::Zero => &mut self.pending.zero,
                Body::Unreadable => &mut self.pending.unreadable,
            };
            *counter = counter.saturating_add(1);
            self.descs.extend_from_slice(&desc.emit());
        }
        self.end = at;
        self.unsynced = self.unsynced.saturating_add(to_u64(batch.data.len()));
        Ok(())
    }

    /// The header's INCOMPLETE falls with the last write.
    fn finish(&mut self) -> Result<(), DumpError> {
        self.checkpoint()?;
        self.sync("page descriptors")?;
        self.header.incomplete = self.of_incomplete;
        self.write_headers()?;
        self.sync("the final header")
    }

    /// Saves descriptors of the data that is there.
    fn give_up(&mut self) {
        let rest = self.checkpoint().and_then(|()| self.sync("the last page descriptors"));
        let ended = if self.sink.is_rewritable() { Ok(()) } else { self.end_stream() };
        if let Err(error) = rest.and(ended) {
            log::warn!("closing the incomplete dump: {}", crate::log::chain(&error));
        }
    }
}

/// The header of a dump that has just begun.
fn header(core: &dyn Core, layout: &Layout, request: &Request) -> Header {
    let info = &request.info;
    let notes_at = layout.notes_offset();
    let mut vmcoreinfo = (0, 0);
    let mut at = notes_at;
    for note in &core.notes().notes {
        if note.kind == NoteKind::VmcoreInfo {
            let ahead = note.desc_offset.saturating_sub(note.offset);
            vmcoreinfo = (at.saturating_add(ahead), note.desc_len);
        }
        at = at.saturating_add(note.len);
    }
    Header {
        utsname: request.utsname.clone(),
        crash_time: info.crash_time().unwrap_or(0),
        incomplete: true,
        excluded_vmemmap: request.exclude.unused_vmemmap() || core.left_out().vmemmap,
        compression_flag: Codec::flag(request.compress),
        nr_cpus: core.notes().cpus(),
        phys_base: info.number("phys_base").unwrap_or(0).cast_unsigned(),
        dump_level: u32::from(request.exclude.level()) | core.left_out().level,
        vmcoreinfo,
        notes: (notes_at, core.notes().len()),
    }
}

fn failed(what: &'static str) -> impl Fn(SinkError) -> DumpError {
    move |source| DumpError::Sink { what, source }
}
