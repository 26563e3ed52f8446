//! The production kernel's physical memory, wherever its bytes come from: `/proc/vmcore`, an ELF
//! file, a dump.
//!
//! A hole is not an I/O error, and a page that is covered by a few bytes only reads as those bytes
//! and zeros, as makedumpfile and crash see it. Nothing here knows what the memory means.

mod dumpfile;
mod extents;
mod flattened;
mod images;
mod kdump;
mod notes;
mod outliers;
mod pages;
mod remembered;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod vmcore;

use std::io;

use crate::format::vmcoreinfo::VmcoreInfo;
use base::addr::{PageSize, Pfn, PfnRange, PhysAddr, VirtAddr};

pub use extents::Anomaly;
pub use flattened::FlattenedOpenError;
pub use kdump::{CopyError, Kdump, KdumpFault, KdumpOpenError};
pub use notes::NoteIndex;
pub use pages::Access;
pub use remembered::Remembered;
pub use vmcore::{Form, Vmcore, VmcoreError};

/// Why bytes of memory could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// No memory there, or none that the source holds.
    #[error("no memory at {0}")]
    Hole(PhysAddr),
    /// A dump left the page out or lost it.
    #[error("page at {0} is not in the dump")]
    Excluded(PhysAddr),
    /// The source holds the bytes and could not give them.
    #[error("reading {len} bytes of memory at {addr}")]
    Io {
        /// First address.
        addr: PhysAddr,
        /// Bytes asked for.
        len: usize,
        /// Cause.
        source: io::Error,
    },
}

/// Physical memory to look things up in.
pub trait PhysicalMemory: Sync {
    /// Size of a page.
    fn page_size(&self) -> PageSize;

    /// Pages that have at least one byte in the source; sorted, disjoint, not adjacent.
    fn ranges(&self) -> &[PfnRange];

    /// The last page of all ranges plus one.
    fn max_pfn(&self) -> Pfn {
        self.ranges().last().map_or(Pfn(0), |range| range.end())
    }

    /// Fills `out` with the bytes from `addr` on; may span ranges that touch.
    fn read_exact_at(&self, addr: PhysAddr, out: &mut [u8]) -> Result<(), ReadError>;

    /// A reader for long runs of pages; each worker has its own.
    fn page_reader(&self) -> Box<dyn PageReader + '_>;

    /// Calls `each` with the runs of pages in `pages` that are memory but that the source does not
    /// hold, in order: a dump leaves pages out.
    fn absent(&self, _pages: PfnRange, _each: &mut dyn FnMut(PfnRange)) {}
}

/// Memory with what a dump carries besides pages: a vmcore, or a dump that is to be filtered or
/// converted again.
pub trait Core: PhysicalMemory {
    /// The machine as uname calls it ("x86_64"), if it is known.
    fn machine(&self) -> Option<&str>;

    /// VMCOREINFO; empty if there is none.
    fn info(&self) -> &VmcoreInfo;

    /// The notes that are worth copying.
    fn notes(&self) -> &NoteIndex;

    /// Reads bytes of a note at the offset that [`Core::notes`] gives.
    fn read_note_bytes(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;

    /// Virtual ranges that an ELF header maps: (virtual start, physical start, bytes).
    fn mappings(&self) -> &[(VirtAddr, PhysAddr, u64)];

    /// What the headers claim and the file does not bear out.
    fn anomalies(&self) -> &[Anomaly];

    /// Whether it is a file, of which nothing more can be had; false for the memory of the machine itself.
    fn is_file(&self) -> bool {
        true
    }

    /// Pages that the headers promise and that are not there: cut off, or lost when the dump was made.
    /// Reads all descriptors of a dump.
    fn lost_pages(&self) -> io::Result<u64> {
        let missing = self.anomalies().iter().map(|anomaly| match anomaly {
            Anomaly::SegmentPastEnd { missing, .. } => missing.div_ceil(self.page_size().bytes()),
            Anomaly::Outlier { bytes, twice: false, .. } => bytes.div_ceil(self.page_size().bytes()),
            _ => 0,
        });
        Ok(missing.fold(0, u64::saturating_add))
    }

    /// What a dump has left out already.
    fn left_out(&self) -> LeftOut {
        LeftOut::default()
    }
}

/// What a dump that is read lacks by its own account; a vmcore lacks nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Its dump level.
    pub level: u32,
    /// Struct pages of pages that are left out.
    pub vmemmap: bool,
    /// It ends early.
    pub incomplete: bool,
}

/// Why a core is not whole, a sentence for each reason; none if every page that it promises can be read.
pub fn faults(core: &dyn Core) -> io::Result<Vec<String>> {
    Ok(faults_with(core, core.lost_pages()?))
}

/// The same, where it is known how many pages are lost: to count them takes a look at all descriptors.
pub fn faults_with(core: &dyn Core, lost_pages: u64) -> Vec<String> {
    let mut faults = Vec::new();
    if core.left_out().incomplete {
        faults.push("its header says that it ends early".to_owned());
    }
    faults.extend(core.anomalies().iter().filter(|anomaly| anomaly.is_loss()).map(Anomaly::to_string));
    if lost_pages > 0 {
        faults.push(format!("{lost_pages} pages that it should have are lost"));
    }
    faults
}

/// Reads memory, fast when addresses ascend.
pub trait PageReader: Send {
    /// Fills `out` with the bytes from `addr` on, as [`PhysicalMemory::read_exact_at`] does, but
    /// made for large pieces.
    fn read_exact_at(&mut self, addr: PhysAddr, out: &mut [u8]) -> Result<(), ReadError>;

    /// Fills `page`, which is one page long. Every byte of the source is read at most once.
    fn read_page(&mut self, pfn: Pfn, page: &mut [u8]) -> Result<(), ReadError>;

    /// Says which page is read next, so that it can be on its way to the CPU while another one is
    /// compressed.
    fn expect(&mut self, _pfn: Pfn) {}
}
