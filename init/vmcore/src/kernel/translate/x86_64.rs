//! x86_64 page tables, with 4 or 5 levels (arch/x86/include/asm/pgtable_64_types.h).

use std::collections::BTreeSet;

use super::{Mapping, Paging, TranslateError};
use crate::format::vmcoreinfo::VmcoreInfo;
use crate::source::PhysicalMemory;
use base::addr::{PhysAddr, VirtAddr};

/// `__START_KERNEL_map`: where the kernel image is mapped, before KASLR moves it physically by
/// `phys_base`.
const START_KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;
const PRESENT: u64 = 1;
/// `_PAGE_RW`
const WRITABLE: u64 = 2;
/// `_PAGE_PSE`: the entry maps a 1 GiB or 2 MiB page instead of pointing to a table.
const LARGE: u64 = 1 << 7;
/// Bits 12 to 51: the physical address in an entry.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const ENTRY_LEN: u64 = 8;
const TABLE_LEN: usize = 4096;
/// Tables that are listed: enough for 128 TiB in 2 MiB pages, and 2 MiB of memory to list them in.
const MAX_TABLES: usize = 1 << 17;

/// Where the kernel's page tables start and how deep they are.
#[derive(Clone, Copy, Debug)]
pub(in crate::kernel) struct PageTables {
    root: PhysAddr,
    levels: u8,
    /// Address bits that say "encrypted" (AMD SME/SEV); not part of the address.
    encryption_mask: u64,
}

/// `sme_mask`: one of the upper address bits (AMD64 manual, CPUID Fn8000_001F); others are damage.
fn encryption_mask(info: &VmcoreInfo) -> u64 {
    let mask = info.number("sme_mask").unwrap_or(0).cast_unsigned();
    if mask.is_power_of_two() && mask >= 1 << 32 { mask } else { 0 }
}

impl PageTables {
    /// Finds the tables by `init_top_pgt` (or `swapper_pg_dir`, the same thing under its generic
    /// name) and `phys_base`; needs no `KERNELOFFSET`, the symbols are relocated already.
    pub(in crate::kernel) fn discover(info: &VmcoreInfo) -> Option<Self> {
        let top = ["init_top_pgt", "swapper_pg_dir"].iter().find_map(|name| info.symbol(name))?;
        let in_image = top.0.checked_sub(START_KERNEL_MAP)?;
        let phys_base = info.number("phys_base")?;
        Some(Self {
            root: PhysAddr(in_image.checked_add_signed(phys_base)?),
            levels: if info.number("pgtable_l5_enabled").unwrap_or(0) != 0 { 5 } else { 4 },
            encryption_mask: encryption_mask(info),
        })
    }

    /// How the tables are built.
    pub(in crate::kernel) fn paging(&self) -> Paging {
        Paging { levels: self.levels, encryption_mask: self.encryption_mask }
    }

    /// Walks the tables for `addr`. At most five reads, whatever the entries say.
    pub(in crate::kernel) fn walk(
        &self,
        memory: &dyn PhysicalMemory,
        addr: VirtAddr,
    ) -> Result<Mapping, TranslateError> {
        let mut table = self.root;
        for level in (1..=self.levels).rev() {
            let shift = 12_u32.saturating_add(9_u32.saturating_mul(u32::from(level).saturating_sub(1)));
            let index = addr.0.wrapping_shr(shift) & 0x1ff;
            let at =
                table.checked_add(index.saturating_mul(ENTRY_LEN)).ok_or(TranslateError::NotMapped(addr))?;
            let mut bytes = [0; 8];
            memory.read_exact_at(at, &mut bytes).map_err(|source| TranslateError::Table {
                level,
                at,
                source,
            })?;
            let entry = u64::from_le_bytes(bytes) & !self.encryption_mask;
            if entry & PRESENT == 0 {
                return Err(TranslateError::NotMapped(addr));
            }
            let large = matches!(level, 2 | 3) && entry & LARGE != 0;
            if level == 1 || large {
                let offset_mask = 1_u64.wrapping_shl(shift).wrapping_sub(1);
                let offset = addr.0 & offset_mask;
                let left = offset_mask.wrapping_add(1).wrapping_sub(offset);
                let phys = PhysAddr((entry & ADDRESS & !offset_mask) | offset);
                return Ok(Mapping { phys, left, writable: entry & WRITABLE != 0 });
            }
            table = PhysAddr(entry & ADDRESS);
        }
        Err(TranslateError::NotMapped(addr))
    }

    /// The tables that map the kernel's half, the top one first; at most [`MAX_TABLES`]. One that
    /// cannot be read leads to no others.
    pub(in crate::kernel) fn tables(&self, memory: &dyn PhysicalMemory) -> Vec<PhysAddr> {
        let mut found = vec![self.root];
        let mut seen = BTreeSet::from([self.root]);
        let mut level_start = 0;
        let mut bytes = vec![0; TABLE_LEN];
        for level in (2..=self.levels).rev() {
            let level_end = found.len();
            for index in level_start..level_end {
                let Some(&table) = found.get(index) else { break };
                if memory.read_exact_at(table, &mut bytes).is_err() {
                    continue;
                }
                // The lower half of the top table is of processes.
                let skip = if level == self.levels { TABLE_LEN / 2 } else { 0 };
                let entries = bytes.get(skip..).unwrap_or_default().chunks_exact(8);
                for entry in entries.filter_map(|entry| entry.try_into().ok()).map(u64::from_le_bytes) {
                    let entry = entry & !self.encryption_mask;
                    let next = PhysAddr(entry & ADDRESS);
                    let maps_memory = level <= 3 && entry & LARGE != 0;
                    if entry & PRESENT != 0 && !maps_memory && found.len() < MAX_TABLES && seen.insert(next) {
                        found.push(next);
                    }
                }
            }
            level_start = level_end;
        }
        found
    }

    /// Calls `each` with what the entries of the last level map in the kernel's half, by ascending
    /// address. As many tables are read as [`PageTables::tables`] lists, whatever they say.
    pub(in crate::kernel) fn each_last_level(
        &self,
        memory: &dyn PhysicalMemory,
        each: &mut dyn FnMut(VirtAddr, PhysAddr),
    ) {
        let mut walk = Walk { memory, left: MAX_TABLES, each };
        self.descend(&mut walk, self.root, self.levels, 0);
    }

    /// One table, whose first entry maps address `base`.
    fn descend(&self, walk: &mut Walk<'_>, table: PhysAddr, level: u8, base: u64) {
        let mut bytes = vec![0; TABLE_LEN];
        let Some(fewer) = walk.left.checked_sub(1) else { return };
        walk.left = fewer;
        if walk.memory.read_exact_at(table, &mut bytes).is_err() {
            return;
        }
        let shift = 12_u32.saturating_add(9_u32.saturating_mul(u32::from(level).saturating_sub(1)));
        // The lower half of the top table is of processes; the upper half's addresses have all
        // upper bits set.
        let (skip, sign) =
            if level == self.levels { (256, u64::MAX.wrapping_shl(shift.saturating_add(9))) } else { (0, 0) };
        let entries = bytes.chunks_exact(8).filter_map(|entry| entry.try_into().ok()).map(u64::from_le_bytes);
        for (index, entry) in (0_u64..).zip(entries).skip(skip) {
            let entry = entry & !self.encryption_mask;
            let at = base | sign | index.wrapping_shl(shift);
            let next = PhysAddr(entry & ADDRESS);
            if entry & PRESENT == 0 || (level <= 3 && level > 1 && entry & LARGE != 0) {
                continue;
            }
            match level.checked_sub(1) {
                Some(below @ 1..) => self.descend(walk, next, below, at),
                _ => (walk.each)(VirtAddr(at), next),
            }
        }
    }
}

/// A walk over all tables.
struct Walk<'a> {
    memory: &'a dyn PhysicalMemory,
    /// Tables that may still be read.
    left: usize,
    each: &'a mut dyn FnMut(VirtAddr, PhysAddr),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::testing::CoreFile;
    use crate::source::{Access, Vmcore};

    /// Tables at 0x1000 (top), 0x2000, 0x3000, 0x4000 map one 4 KiB page, one 2 MiB page and one 1
    /// GiB page.
    fn tables(levels: u8) -> (VmcoreInfo, Vmcore) {
        let mut memory = vec![0_u8; 0x5000];
        let mut entry = |table: usize, index: usize, value: u64| {
            memory[table - 0x1000 + index * 8..][..8].copy_from_slice(&value.to_le_bytes());
        };
        let top = if levels == 5 {
            entry(0x5000, 0x1ff, 0x1000 | 1);
            0x5000
        } else {
            0x1000
        };
        entry(0x1000, 0x1ff, 0x2000 | 1);
        entry(0x2000, 0x1fe, 0x3000 | 1);
        entry(0x2000, 0x1ff, 0x8000_0000 | LARGE | 1 | 1 << 63);
        entry(0x3000, 0, 0x4000 | 1);
        entry(0x3000, 1, 0x0060_0000 | LARGE | 1);
        entry(0x4000, 5, 0x1234_5000 | 1);
        let file = CoreFile::new().segment(0x1000, &memory).write();
        let info = format!(
            "SYMBOL(init_top_pgt)={:x}\nNUMBER(phys_base)=-4096\nNUMBER(pgtable_l5_enabled)={}\n",
            START_KERNEL_MAP + top + 4096,
            u8::from(levels == 5)
        );
        (VmcoreInfo::parse(info.as_bytes()), Vmcore::open(file.path(), Access::Pread).unwrap())
    }

    #[test]
    fn walks_every_page_size_at_4_and_5_levels() {
        for levels in [4, 5] {
            let (info, core) = tables(levels);
            let tables = PageTables::discover(&info).unwrap();
            let walk = |addr| tables.walk(&core, VirtAddr(addr)).map(|found| (found.phys.0, found.left));
            assert_eq!(walk(0xffff_ffff_8000_5678).unwrap(), (0x1234_5678, 0x988));
            assert_eq!(walk(0xffff_ffff_8023_4567).unwrap(), (0x0063_4567, 0x20_0000 - 0x3_4567));
            assert_eq!(walk(0xffff_ffff_c765_4321).unwrap(), (0x8765_4321, 0x4000_0000 - 0x765_4321));
            assert!(matches!(walk(0xffff_ffff_8000_4000), Err(TranslateError::NotMapped(_))));
        }
    }

    #[test]
    fn a_table_outside_memory_is_an_error() {
        let (info, _) = tables(4);
        let file = CoreFile::new().segment(0x9000, &[0; 16]).write();
        let core = Vmcore::open(file.path(), Access::Pread).unwrap();
        let got = PageTables::discover(&info).unwrap().walk(&core, VirtAddr(u64::MAX));
        assert!(matches!(got, Err(TranslateError::Table { level: 4, .. })));
    }
}
