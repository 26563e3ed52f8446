//! What the production kernel's memory means: addresses, names, its log.
//!
//! Everything here is found by VMCOREINFO keys, never by a kernel version, and every number read
//! from the old memory is taken as hostile: loops are bounded by what the format allows, not by
//! what a field says.

pub mod dmesg;
pub mod info;
pub mod memmap;
pub mod page;
#[cfg(test)]
pub(crate) mod testing;
mod translate;
pub mod uts;

use std::cell::RefCell;

use crate::format::vmcoreinfo::VmcoreInfo;
use crate::source::{PhysicalMemory, ReadError};
use base::addr::{PageSize, PhysAddr, VirtAddr, to_u64, to_usize};

pub use translate::{LinearMap, Mapping, Paging, TranslateError};

/// Why something could not be found in the production kernel's memory.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// VMCOREINFO lacks a key, or the core has no VMCOREINFO.
    #[error("VMCOREINFO has no {0}")]
    MissingKey(String),
    /// A virtual address leads nowhere.
    #[error("translating the address of {what}")]
    Translate {
        /// What was looked for.
        what: &'static str,
        /// Cause.
        source: TranslateError,
    },
    /// The memory could not be read.
    #[error("reading {what}")]
    Read {
        /// What was looked for.
        what: &'static str,
        /// Cause.
        source: ReadError,
    },
    /// A value that no kernel has.
    #[error("{what} is {value:#x}, which cannot be")]
    Absurd {
        /// Which value.
        what: &'static str,
        /// The value.
        value: u64,
    },
}

/// The production kernel's address space over its physical memory.
pub struct Kernel<'a> {
    memory: &'a dyn PhysicalMemory,
    info: &'a VmcoreInfo,
    tables: Option<translate::x86_64::PageTables>,
    linear: &'a [LinearMap],
    /// The last translations, direct-mapped by page number: text and descriptors are read in order.
    cache: RefCell<[Option<(u64, PhysAddr)>; 64]>,
}

impl core::fmt::Debug for Kernel<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Kernel").field("tables", &self.tables).finish_non_exhaustive()
    }
}

impl<'a> Kernel<'a> {
    /// The kernel that `info` describes. `linear` are the virtual ranges that an ELF header maps,
    /// used where page tables cannot be walked; they may be empty.
    #[must_use]
    pub fn new(memory: &'a dyn PhysicalMemory, info: &'a VmcoreInfo, linear: &'a [LinearMap]) -> Self {
        let tables = translate::x86_64::PageTables::discover(info);
        Self { memory, info, tables, linear, cache: RefCell::new([None; 64]) }
    }

    /// Its physical memory.
    #[must_use]
    pub fn memory(&self) -> &'a dyn PhysicalMemory {
        self.memory
    }

    /// Size of a page.
    #[must_use]
    pub fn page_size(&self) -> PageSize {
        self.memory.page_size()
    }

    /// VMCOREINFO.
    #[must_use]
    pub fn info(&self) -> &VmcoreInfo {
        self.info
    }

    /// The address of a symbol.
    pub fn symbol(&self, name: &str) -> Result<VirtAddr, KernelError> {
        self.info.symbol(name).ok_or_else(|| KernelError::MissingKey(format!("SYMBOL({name})")))
    }

    /// The offset of a member.
    pub fn offset(&self, name: &str) -> Result<u64, KernelError> {
        self.info.offset(name).ok_or_else(|| KernelError::MissingKey(format!("OFFSET({name})")))
    }

    /// The size of a structure; at most 64 KiB, which no kernel structure in VMCOREINFO comes near.
    pub fn size(&self, name: &str) -> Result<u64, KernelError> {
        let size = self.info.size(name).ok_or_else(|| KernelError::MissingKey(format!("SIZE({name})")))?;
        let sane = (1..=65536).contains(&size);
        sane.then_some(size)
            .ok_or(KernelError::Absurd { what: "a structure size in VMCOREINFO", value: size })
    }

    /// Fills `out` from virtual address `addr` on. `what` names it in errors.
    pub fn read(&self, addr: VirtAddr, out: &mut [u8], what: &'static str) -> Result<(), KernelError> {
        let mut at = addr;
        let mut rest = out;
        while !rest.is_empty() {
            let in_page = at.0 & 0xfff;
            let take = to_usize(0x1000_u64.saturating_sub(in_page)).min(rest.len());
            let (head, tail) = rest.split_at_mut(take);
            let phys = self.translate(at).map_err(|source| KernelError::Translate { what, source })?;
            self.memory.read_exact_at(phys, head).map_err(|source| KernelError::Read { what, source })?;
            at = at.checked_add(to_u64(take)).ok_or(KernelError::Absurd { what, value: addr.0 })?;
            rest = tail;
        }
        Ok(())
    }

    /// The 64-bit word at `addr`.
    pub fn read_u64(&self, addr: VirtAddr, what: &'static str) -> Result<u64, KernelError> {
        let mut bytes = [0; 8];
        self.read(addr, &mut bytes, what)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// The 32-bit word at `addr`.
    pub fn read_u32(&self, addr: VirtAddr, what: &'static str) -> Result<u32, KernelError> {
        let mut bytes = [0; 4];
        self.read(addr, &mut bytes, what)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// The physical address of `addr`: page tables first, since only they know vmalloc and per-cpu
    /// memory; then what the ELF header maps, which still finds kernel data when a table is
    /// damaged.
    pub fn translate(&self, addr: VirtAddr) -> Result<PhysAddr, TranslateError> {
        let page = addr.0 >> 12;
        let slot = to_usize(page & 63);
        let cached = self.cache.borrow().get(slot).copied().flatten();
        let base = match cached {
            Some((tag, base)) if tag == page => base,
            _ => {
                let base = self.map(VirtAddr(page << 12))?.phys;
                if let Some(entry) = self.cache.borrow_mut().get_mut(slot) {
                    *entry = Some((page, base));
                }
                base
            }
        };
        base.checked_add(addr.0 & 0xfff).ok_or(TranslateError::NotMapped(addr))
    }

    /// How page tables are built, if VMCOREINFO tells where the kernel's are.
    #[must_use]
    pub fn paging(&self) -> Option<Paging> {
        self.tables.map(|tables| tables.paging())
    }

    /// The page tables of the kernel's half, by physical address.
    #[must_use]
    pub fn page_tables(&self) -> Vec<PhysAddr> {
        self.tables.map(|tables| tables.tables(self.memory)).unwrap_or_default()
    }

    /// Calls `each` with every piece of memory that the kernel's page tables map one page table
    /// entry at a time, by virtual address: all of its address space but what it maps in huge
    /// pages. A page that is mapped several times is
    /// reported several times.
    pub fn each_small_mapping(&self, each: &mut dyn FnMut(VirtAddr, PhysAddr)) {
        if let Some(tables) = &self.tables {
            tables.each_last_level(self.memory, each);
        }
    }

    /// What `addr` leads to, and how far.
    pub fn map(&self, addr: VirtAddr) -> Result<Mapping, TranslateError> {
        let walked = match &self.tables {
            Some(tables) => tables.walk(self.memory, addr),
            None => Err(TranslateError::NoPageTables),
        };
        walked.or_else(|error| translate::linear(self.linear, addr).ok_or(error))
    }
}
