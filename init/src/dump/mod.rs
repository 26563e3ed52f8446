//! Writing a dump: which pages (plan), their bytes (pipeline, codec), the file (writer).
//!
//! Two passes. The *metadata pass* puts header, notes and both bitmaps on the sink before the first page, so that
//! a dump cut short at any later point has them. The *data pass* reads each kept page once. The header says
//! INCOMPLETE until the last write. This module never learns where the sink leads.

mod bitmap;
mod codec;
mod pipeline;
mod plan;
mod progress;
mod writer;

use crate::budget::Budget;
use crate::config::{Compress, DumpLevel};
use crate::format::kdump::{LayoutError, Utsname};
use crate::report::PageCounts;
use crate::sink::{Sink, SinkError};
use crate::source::{Core, PhysicalMemory};

pub use progress::Heartbeat;

use plan::Plan;
use progress::Progress;
use writer::KdumpWriter;

/// What a dump is to be.
#[derive(Clone, Debug)]
pub struct Request {
    /// Which pages are left out.
    pub level: DumpLevel,
    /// How page data is compressed.
    pub compress: Compress,
    /// uname of the production kernel, for the header.
    pub utsname: Utsname,
    /// Threads and buffers.
    pub budget: Budget,
}

/// What has been written. Right also when the dump ended early.
#[derive(Clone, Copy, Debug, Default)]
pub struct Written {
    /// Pages by fate.
    pub pages: PageCounts,
    /// Length of the dump, bytes.
    pub bytes: u64,
}

/// Why a dump ended early. What is on the sink by then is a readable dump that says INCOMPLETE, unless the
/// headers did not fit.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// More memory than the format can hold.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The sink failed.
    #[error("writing {what}")]
    Sink {
        /// Which part of the dump.
        what: &'static str,
        /// Cause.
        source: SinkError,
    },
}

/// Writes a kdump-compressed dump of `core` to `sink`. `written` tells how far it came, whatever is returned.
pub fn write(
    core: &dyn Core,
    request: &Request,
    sink: &mut dyn Sink,
    heartbeat: &Heartbeat<'_>,
    written: &mut Written,
) -> Result<(), DumpError> {
    let plan = Plan::new(core);
    let mut writer = KdumpWriter::start(sink, core, &plan, request, heartbeat)?;
    let mut progress = Progress::new(plan.kept(), core.page_size(), heartbeat);
    let result = pipeline::run(core, &plan, request, |batch| {
        writer.append(batch)?;
        progress.tick(&writer.appended(), writer.len());
        Ok(())
    });
    let result = result.and_then(|()| writer.finish());
    if result.is_err() {
        writer.give_up();
    }
    *written = Written { pages: writer.saved(), bytes: writer.len() };
    progress.done(&written.pages, written.bytes);
    result
}

/// Bytes of memory that `memory` holds, in whole pages.
#[must_use]
pub fn memory_bytes(memory: &dyn PhysicalMemory) -> u64 {
    let pages = memory.ranges().iter().fold(0_u64, |sum, range| sum.saturating_add(range.pages()));
    pages.saturating_mul(memory.page_size().bytes())
}

#[cfg(test)]
mod tests;
