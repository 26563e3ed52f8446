//! The mappings of a process (`struct mm_struct`, `struct vm_area_struct`).

use base::addr::{PhysAddr, VirtAddr};
use vmcore::kernel::KernelError;

use crate::maple;
use crate::system::System;

/// User space ends below, with five levels of page tables (`TASK_SIZE_MAX`).
const USER_END: u64 = 1 << 56;
/// Mappings that are believed; `vm.max_map_count` is 65,530 by default and a million with some.
const MAX_MAPPINGS: usize = 1 << 20;
const PAGE: u64 = 4096;

/// `VM_READ`, `VM_WRITE`, `VM_EXEC`, `VM_SHARED`; `VM_PFNMAP`, `VM_IO`, `VM_HUGETLB`
/// (include/linux/mm.h).
pub mod flag {
    #![expect(missing_docs, reason = "the names of the header")]
    pub const READ: u64 = 1;
    pub const WRITE: u64 = 2;
    pub const EXEC: u64 = 4;
    pub const SHARED: u64 = 8;
    pub const PFNMAP: u64 = 0x400;
    pub const IO: u64 = 0x4000;
    pub const HUGETLB: u64 = 0x0040_0000;
}

/// A mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// The address behind it.
    pub end: u64,
    /// `vm_flags`
    pub flags: u64,
    /// Where it begins in its file, in pages.
    pub offset: u64,
    /// Its `struct file`.
    pub file: Option<VirtAddr>,
    /// Whether it has operations of its own: without a file it is special, such as the vDSO.
    pub has_ops: bool,
}

impl Mapping {
    /// Its pages.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.end.saturating_sub(self.start) / PAGE
    }

    /// Whether all these flags are set.
    #[must_use]
    pub fn has(&self, flags: u64) -> bool {
        self.flags & flags == flags
    }

    /// Its rights as /proc/PID/maps has them.
    #[must_use]
    pub fn rights(&self) -> String {
        let letter = |flag, letter| if self.has(flag) { letter } else { '-' };
        let sharing = if self.has(flag::SHARED) { 's' } else { 'p' };
        [letter(flag::READ, 'r'), letter(flag::WRITE, 'w'), letter(flag::EXEC, 'x'), sharing].iter().collect()
    }
}

/// An address space.
#[derive(Clone, Debug)]
pub struct Space {
    /// Its `mm_struct`.
    pub address: VirtAddr,
    /// The top table.
    pub tables: PhysAddr,
    /// By ascending address; they do not overlap.
    pub mappings: Vec<Mapping>,
    /// Where the vDSO is mapped, and where the kernel has its content.
    pub vdso: Option<(u64, VirtAddr, u64)>,
    /// Where its arguments lie.
    pub arguments: (u64, u64),
    /// `saved_auxv`
    pub auxv: Vec<u8>,
    /// What is wrong with it.
    pub faults: Vec<String>,
}

impl Space {
    /// Reads the mappings of an `mm_struct`.
    pub fn read(system: &System<'_>, mm: VirtAddr) -> Result<Self, KernelError> {
        let layout = &system.layout.mm;
        let pgd = system.word(mm, layout.pgd, "mm_struct.pgd")?;
        let tables = system.table(VirtAddr(pgd))?;
        let word = |offset: Option<u64>| {
            offset.and_then(|offset| system.word(mm, offset, "mm_struct").ok()).unwrap_or(0)
        };
        let auxv = layout.auxv.map(|offset| {
            let len = base::addr::to_usize(system.layout.auxv_len);
            system.bytes(mm, offset, len, "mm_struct.saved_auxv")
        });
        let mut space = Self {
            address: mm,
            tables,
            mappings: Vec::new(),
            vdso: vdso(system, mm),
            arguments: (word(layout.arg_start), word(layout.arg_end)),
            auxv: auxv.and_then(Result::ok).unwrap_or_default(),
            faults: Vec::new(),
        };
        match (system.layout.maple, layout.tree, layout.list, system.layout.vma.next) {
            (Some(maple), Some(tree), _, _) => {
                let at = mm.checked_add(tree).ok_or(KernelError::Absurd { what: "an mm", value: mm.0 })?;
                let found = maple::entries(system, &maple, at)?;
                space.faults.extend(found.faults);
                for (first, last, vma) in found.all {
                    space.add(system, vma, Some((first, last)));
                }
            }
            (_, _, Some(list), Some(next)) => space.follow(system, list, next)?,
            _ => return Err(KernelError::MissingKey("mm_struct.mm_mt and mm_struct.mmap".to_owned())),
        }
        let count = layout.map_count.and_then(|offset| system.half(mm, offset, "mm_struct.map_count").ok());
        let found = space.mappings.len();
        if let Some(count) = count.filter(|count| u64::from(*count) != base::addr::to_u64(found)) {
            space.faults.push(format!("{found} of {count} mappings are found"));
        }
        Ok(space)
    }

    /// The list of mappings of kernels before 6.1. Addresses ascend, so that it cannot be a circle.
    fn follow(&mut self, system: &System<'_>, head: u64, next: u64) -> Result<(), KernelError> {
        let mut at = system.pointer(self.address, head, "mm_struct.mmap")?;
        while let Some(vma) = at {
            if !self.add(system, vma, None) {
                break;
            }
            at = system.pointer(vma, next, "vm_area_struct.vm_next")?;
        }
        Ok(())
    }

    /// Adds a mapping, if it is one. A tree knows which addresses it is of.
    fn add(&mut self, system: &System<'_>, vma: VirtAddr, of: Option<(u64, u64)>) -> bool {
        let read = || -> Result<Mapping, KernelError> {
            let layout = &system.layout.vma;
            let word = |offset| system.word(vma, offset, "vm_area_struct");
            Ok(Mapping {
                start: word(layout.start)?,
                end: word(layout.end)?,
                flags: word(layout.flags)?,
                offset: word(layout.offset)?,
                file: system.pointer(vma, layout.file, "vm_area_struct.vm_file")?,
                has_ops: word(layout.ops)? != 0,
            })
        };
        let behind = self.mappings.last().map_or(0, |last| last.end);
        let fault = match read() {
            Ok(mapping) => {
                let aligned = mapping.start.is_multiple_of(PAGE) && mapping.end.is_multiple_of(PAGE);
                let ordered = behind <= mapping.start && mapping.start < mapping.end;
                let as_told = of.is_none_or(|(first, last)| {
                    first == mapping.start && last.checked_add(1) == Some(mapping.end)
                });
                if self.mappings.len() >= MAX_MAPPINGS {
                    "there are too many".to_owned()
                } else if aligned && ordered && as_told && mapping.end <= USER_END {
                    self.mappings.push(mapping);
                    return true;
                } else {
                    format!("{:#x} to {:#x} cannot be", mapping.start, mapping.end)
                }
            }
            Err(error) => base::log::chain(&error),
        };
        // Of a tree that is damaged all over one sentence is enough.
        if self.faults.len() < 16 {
            self.faults.push(format!("the mapping at {vma}: {fault}"));
        }
        false
    }

    /// The mapping that an address lies in.
    #[must_use]
    pub fn mapping(&self, address: u64) -> Option<&Mapping> {
        let index = self.mappings.partition_point(|mapping| mapping.end <= address);
        self.mappings.get(index).filter(|mapping| mapping.start <= address)
    }
}

/// The vDSO: the kernel has its content in its image (`struct vdso_image`).
fn vdso(system: &System<'_>, mm: VirtAddr) -> Option<(u64, VirtAddr, u64)> {
    let layout = &system.layout;
    let start = system.word(mm, layout.mm.vdso?, "mm_struct.context.vdso").ok()?;
    let image = system.pointer(mm, layout.mm.vdso_image?, "mm_struct.context.vdso_image").ok()??;
    let (data, size) = layout.vdso?;
    let data = system.pointer(image, data, "vdso_image.data").ok()??;
    let size = system.word(image, size, "vdso_image.size").ok()?;
    (size <= 1 << 20).then_some((start, data, size))
}
