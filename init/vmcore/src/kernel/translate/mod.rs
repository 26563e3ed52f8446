//! Virtual to physical addresses of the production kernel; a file per architecture.

pub(super) mod x86_64;

use crate::source::ReadError;
use base::addr::{PhysAddr, VirtAddr};

/// A virtual range that an ELF header maps to physical memory: (virtual start, physical start,
/// bytes).
pub type LinearMap = (VirtAddr, PhysAddr, u64);

/// What a virtual address leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Its physical address.
    pub phys: PhysAddr,
    /// Bytes from there on that lie in one piece.
    pub left: u64,
    /// Whether the kernel may write there.
    pub writable: bool,
}

/// How page tables are built: the same for the kernel and all processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paging {
    /// Levels of tables.
    pub levels: u8,
    /// Address bits that say "encrypted" (AMD SME/SEV); not part of the address.
    pub encryption_mask: u64,
}

/// Why an address could not be translated.
#[derive(Debug, thiserror::Error)]
pub enum TranslateError {
    /// VMCOREINFO does not tell where the page tables are.
    #[error("VMCOREINFO does not tell where the page tables are")]
    NoPageTables,
    /// The page tables do not map it.
    #[error("{0} is not mapped")]
    NotMapped(VirtAddr),
    /// A table could not be read.
    #[error("reading the level-{level} page table entry at {at}")]
    Table {
        /// Level, 1 is the last.
        level: u8,
        /// Physical address of the entry.
        at: PhysAddr,
        /// Cause.
        source: ReadError,
    },
}

/// `addr` by the ELF header's mappings.
pub(super) fn linear(maps: &[LinearMap], addr: VirtAddr) -> Option<Mapping> {
    maps.iter().find_map(|&(virt, phys, len)| {
        let ahead = addr.0.checked_sub(virt.0).filter(|&ahead| ahead < len)?;
        let phys = phys.checked_add(ahead)?;
        Some(Mapping { phys, left: len.saturating_sub(ahead), writable: true })
    })
}
