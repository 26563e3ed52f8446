//! Writing a dump: which pages (plan), their bytes (pipeline, codec), the file (a writer per
//! format).
//!
//! Two passes. The *metadata pass* finds the pages to keep and puts what describes them on the sink
//! before the first page, so that a dump cut short at any later point has it. The *data pass* reads
//! each kept page once. This module never learns where the sink leads.

mod bitmap;
mod codec;
pub mod estimate;
mod flattened;
mod in_order;
mod kdump;
pub mod notes;
mod pipeline;
mod places;
mod plan;
mod progress;
mod segments;
mod tuner;
mod walk;

use crate::budget::{Budget, MemoryUse};
use crate::filter::PageFilter;
use crate::filter::order::Order;
use crate::format::kdump::{LayoutError, Utsname};
use crate::format::vmcoreinfo::VmcoreInfo;
use crate::kernel::Kernel;
use crate::report::PageCounts;
use crate::sink::{Sink, SinkError};
use crate::source::{Core, PhysicalMemory};
use base::addr::{Pfn, PfnRange};
use base::beat;
use base::config::{Compress, Exclude, Format};

pub use plan::Found;

use flattened::Flattened;
use in_order::InOrder;
use kdump::KdumpWriter;
use pipeline::Batch;
use plan::{Plan, Rule};
use progress::Progress;
use segments::SegmentWriter;

/// What a dump is to be.
#[derive(Clone, Debug)]
pub struct Request {
    /// Which pages are left out.
    pub exclude: Exclude,
    /// Format of the file.
    pub format: Format,
    /// How page data is compressed, in a format that can.
    pub compress: Compress,
    /// uname of the production kernel, for the header.
    pub utsname: Utsname,
    /// VMCOREINFO, for the header.
    pub info: VmcoreInfo,
    /// Threads and buffers.
    pub budget: Budget,
    /// Pages that are not to be read, in order: an earlier attempt came to its end there.
    pub skip: Vec<PfnRange>,
    /// Whether every page is announced before it is read, for PID 1 to know at which one an attempt
    /// came to its end.
    pub careful: bool,
}

impl Request {
    /// Whether the page is one of those at which an earlier attempt came to its end.
    fn is_skipped(&self, pfn: Pfn) -> bool {
        let after = self.skip.partition_point(|range| range.end() <= pfn);
        self.skip.get(after).is_some_and(|range| range.start() <= pfn)
    }

    /// The compression that the format can have.
    fn compress(&self) -> Compress {
        if self.format.is_compressed() { self.compress } else { Compress::None }
    }
}

/// What has been written. Right also when the dump ended early.
#[derive(Clone, Debug, Default)]
pub struct Written {
    /// Pages by fate.
    pub pages: PageCounts,
    /// Length of the dump, bytes.
    pub bytes: u64,
    /// How long the dump was when all that readers need first was durable; `None` if it never came
    /// that far, or the format has no such order.
    pub vital_bytes: Option<u64>,
    /// The format: kdump instead of an ELF whose segments do not fit in memory.
    pub format: Format,
    /// What the pages are.
    pub found: Found,
    /// Memory that the data pass needed.
    pub memory: MemoryUse,
}

/// Why a dump ended early. What is on the sink by then is a readable dump that says INCOMPLETE,
/// unless the headers did not fit.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// More memory than the format can hold.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// More pages than a file has room for.
    #[error("the place of {what} in the file is beyond 64 bits")]
    Place {
        /// What would lie there.
        what: &'static str,
    },
    /// The sink failed.
    #[error("writing {what}")]
    Sink {
        /// Which part of the dump.
        what: &'static str,
        /// Cause.
        source: SinkError,
    },
}

/// Writes a dump in one format.
trait DumpWriter {
    /// Pages that are durable: what a reader will find.
    fn saved(&self) -> PageCounts;
    /// Pages that have been appended.
    fn appended(&self) -> PageCounts;
    /// Length of the dump so far, bytes.
    fn len(&self) -> u64;
    /// Length of the dump when its vital part was durable.
    fn vital_len(&self) -> Option<u64> {
        None
    }
    /// Appends a batch, and says whether that took a sync.
    fn append(&mut self, batch: &Batch) -> Result<bool, DumpError>;
    /// Completes the dump.
    fn finish(&mut self) -> Result<(), DumpError>;
    /// Saves what can still be saved after an error.
    fn give_up(&mut self);
}

/// Writes a dump of `core` to `sink`. Without a `filter` no page is left out by its class.
/// `written` tells how far it came, whatever is returned.
pub fn write(
    core: &dyn Core,
    filter: Option<&PageFilter<'_>>,
    request: &Request,
    sink: &mut dyn Sink,
    written: &mut Written,
) -> Result<(), DumpError> {
    let order = Order::discover(&Kernel::new(core, &request.info, core.mappings()), filter);
    beat::alive();
    let rule = Rule { filter, exclude: request.exclude, order: &order };
    let plan = Plan::new(core, rule, &request.budget);
    written.found = plan.found.clone();
    written.pages.excluded = plan.present().saturating_sub(plan.kept());
    let instead = (request.format == Format::Elf && !segments::fits(&plan, &request.budget))
        .then(|| Request { format: Format::Kdump, ..request.clone() });
    let request = instead.as_ref().unwrap_or(request);
    written.format = request.format;
    let mut job = Job { core, plan: &plan, request, written };
    match request.format {
        Format::Kdump => job.run(&mut KdumpWriter::start(sink, core, &plan, request)?),
        Format::Flattened => {
            let stream = |source| DumpError::Sink { what: "the stream", source };
            let mut stream_sink = Flattened::new(sink);
            let mut writer = KdumpWriter::start(&mut stream_sink, core, &plan, request)?;
            let result = job.run(&mut writer);
            let ended = stream_sink.finish().map_err(stream);
            written.bytes = stream_sink.len();
            result.and(ended)
        }
        Format::Elf | Format::Lime | Format::Raw if !sink.is_rewritable() => {
            job.run(&mut InOrder::start(sink, core, &plan, request)?)
        }
        Format::Elf | Format::Lime | Format::Raw => {
            job.run(&mut SegmentWriter::start(sink, core, &plan, request)?)
        }
    }
}

/// The data pass.
struct Job<'a> {
    core: &'a dyn Core,
    plan: &'a Plan<'a>,
    request: &'a Request,
    written: &'a mut Written,
}

impl Job<'_> {
    fn run(&mut self, writer: &mut dyn DumpWriter) -> Result<(), DumpError> {
        let mut progress = Progress::new(self.plan.kept(), self.core.page_size());
        let result = pipeline::run(self.core, self.plan, self.request, |batch| {
            let synced = writer.append(batch)?;
            progress.tick(&writer.appended(), writer.len());
            Ok(synced)
        });
        let result = result.and_then(|()| writer.finish());
        if result.is_err() {
            writer.give_up();
        }
        let excluded = self.written.pages.excluded;
        self.written.pages = PageCounts { excluded, ..writer.saved() };
        if result.is_ok() {
            // Pages that nobody could find again were not appended at all.
            let lost = self.plan.kept().saturating_sub(writer.saved().total());
            self.written.pages.unreadable = self.written.pages.unreadable.saturating_add(lost);
        }
        self.written.vital_bytes = writer.vital_len();
        self.written.bytes = writer.len();
        self.written.memory = progress.done(&writer.saved(), writer.len());
        result
    }
}

/// Bytes of memory that `memory` holds, in whole pages.
#[must_use]
pub fn memory_bytes(memory: &dyn PhysicalMemory) -> u64 {
    PfnRange::count(memory.ranges()).saturating_mul(memory.page_size().bytes())
}

#[cfg(test)]
mod tests;
