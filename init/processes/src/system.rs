//! A kernel with what is known of its structures.

use base::addr::{PhysAddr, VirtAddr};
use symbols::knowledge::Knowledge;
use vmcore::kernel::{Kernel, KernelError, Paging};

use crate::layout::{Layout, Missing};

/// `VMEMMAP_START` of x86_64 with four levels and without KASLR.
const VMEMMAP: u64 = 0xffff_ea00_0000_0000;
/// Kernel addresses lie above.
const KERNEL: u64 = 0xff00_0000_0000_0000;

/// Why processes cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum SystemError {
    /// A structure is not as it has been so far.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// The memory.
    #[error(transparent)]
    Memory(#[from] KernelError),
    /// No page tables.
    #[error("VMCOREINFO does not tell how page tables are built")]
    NoPaging,
    /// There is no task to start from.
    #[error("the kernel has no symbol init_task")]
    NoTasks,
}

/// Addresses of global variables; none of one that the kernel does not have.
#[derive(Clone, Copy, Debug, Default)]
#[expect(missing_docs, reason = "the names of the kernel")]
pub struct Variables {
    pub init_task: Option<VirtAddr>,
    pub vmemmap_base: Option<VirtAddr>,
    pub shmem_aops: Option<VirtAddr>,
    pub nr_swapfiles: Option<VirtAddr>,
    pub empty_zero_page: Option<VirtAddr>,
    pub crashing_cpu: Option<VirtAddr>,
    pub panic_cpu: Option<VirtAddr>,
}

impl Variables {
    /// Looks them up.
    #[must_use]
    pub fn ask(known: &dyn Knowledge) -> Self {
        Self {
            init_task: known.symbol("init_task"),
            vmemmap_base: known.symbol("vmemmap_base"),
            shmem_aops: known.symbol("shmem_aops"),
            nr_swapfiles: known.symbol("nr_swapfiles"),
            empty_zero_page: known.symbol("empty_zero_page"),
            crashing_cpu: known.symbol("crashing_cpu"),
            panic_cpu: known.symbol("panic_cpu"),
        }
    }
}

/// A kernel with what is known of its structures.
#[derive(Debug)]
pub struct System<'a> {
    /// Its memory.
    pub kernel: &'a Kernel<'a>,
    /// Where its variables are.
    pub variables: Variables,
    /// Where members lie.
    pub layout: Layout,
    /// How page tables are built.
    pub paging: Paging,
    /// `vmemmap_base`: where struct pages begin.
    pub vmemmap: u64,
    /// Pages of memory: nothing that lies in memory is there more often.
    pub pages: u64,
}

impl<'a> System<'a> {
    /// Looks up what is needed.
    pub fn new(kernel: &'a Kernel<'a>, known: &dyn Knowledge) -> Result<Self, SystemError> {
        let layout = Layout::ask(known)?;
        let variables = Variables::ask(known);
        let paging = kernel.paging().ok_or(SystemError::NoPaging)?;
        let base = variables.vmemmap_base;
        let vmemmap = base.and_then(|at| kernel.read_u64(at, "vmemmap_base").ok()).unwrap_or(VMEMMAP);
        let pages = base::addr::PfnRange::count(kernel.memory().ranges());
        Ok(Self { kernel, variables, layout, paging, vmemmap, pages })
    }

    /// The address of a member.
    fn at(base: VirtAddr, offset: u64, what: &'static str) -> Result<VirtAddr, KernelError> {
        base.checked_add(offset).ok_or(KernelError::Absurd { what, value: base.0 })
    }

    /// A 64-bit member.
    pub fn word(&self, base: VirtAddr, offset: u64, what: &'static str) -> Result<u64, KernelError> {
        self.kernel.read_u64(Self::at(base, offset, what)?, what)
    }

    /// A 32-bit member.
    pub fn half(&self, base: VirtAddr, offset: u64, what: &'static str) -> Result<u32, KernelError> {
        self.kernel.read_u32(Self::at(base, offset, what)?, what)
    }

    /// A pointer to kernel memory; none if it is null, or leads elsewhere.
    pub fn pointer(
        &self,
        base: VirtAddr,
        offset: u64,
        what: &'static str,
    ) -> Result<Option<VirtAddr>, KernelError> {
        Ok(Some(self.word(base, offset, what)?).filter(|word| *word >= KERNEL).map(VirtAddr))
    }

    /// The same of one that has to lead to something.
    pub fn follow(&self, base: VirtAddr, offset: u64, what: &'static str) -> Result<VirtAddr, KernelError> {
        self.pointer(base, offset, what)?.ok_or(KernelError::Absurd { what, value: 0 })
    }

    /// A 16-bit member.
    pub fn short(&self, base: VirtAddr, offset: u64, what: &'static str) -> Result<u16, KernelError> {
        let mut bytes = [0; 2];
        self.kernel.read(Self::at(base, offset, what)?, &mut bytes, what)?;
        Ok(u16::from_le_bytes(bytes))
    }

    /// A member of one byte.
    pub fn byte(&self, base: VirtAddr, offset: u64, what: &'static str) -> Result<u8, KernelError> {
        let mut bytes = [0; 1];
        self.kernel.read(Self::at(base, offset, what)?, &mut bytes, what)?;
        Ok(u8::from_le_bytes(bytes))
    }

    /// Bytes of a member.
    pub fn bytes(
        &self,
        base: VirtAddr,
        offset: u64,
        len: usize,
        what: &'static str,
    ) -> Result<Vec<u8>, KernelError> {
        let mut bytes = vec![0; len];
        self.kernel.read(Self::at(base, offset, what)?, &mut bytes, what)?;
        Ok(bytes)
    }

    /// Where a page table lies that the kernel has the virtual address of.
    pub fn table(&self, at: VirtAddr) -> Result<PhysAddr, KernelError> {
        let what = "the page tables of a process";
        self.kernel.translate(at).map_err(|source| KernelError::Translate { what, source })
    }
}
