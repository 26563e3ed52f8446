//! Memory that tests make up: a piece of physical memory from 0 on, which the kernel sees at
//! [`DIRECT`], and a layout with members at places of our own.

use base::addr::VirtAddr;
use vmcore::format::vmcoreinfo::VmcoreInfo;
use vmcore::kernel::{Kernel, Paging};
use vmcore::source::testing::CoreFile;
use vmcore::source::{Access, Vmcore};

use crate::layout::{
    CacheLayout, DentryLayout, FileLayout, FolioLayout, FpuLayout, Layout, MapleLayout, MapleNode, MmLayout,
    MountLayout, NodeLayout, SignalLayout, TaskLayout, VmaLayout,
};
use crate::system::{System, Variables};

/// Where physical memory is mapped.
pub(crate) const DIRECT: u64 = 0xffff_8880_0000_0000;
/// Bytes of memory.
pub(crate) const LEN: usize = 1 << 19;
/// Where struct pages are, 64 bytes each.
pub(crate) const VMEMMAP: u64 = DIRECT + 0x7_0000;
pub(crate) const PAGE: u64 = 4096;

/// Memory under construction.
pub(crate) struct Made(pub(crate) Vec<u8>);

impl Made {
    pub(crate) fn new() -> Self {
        Self(vec![0; LEN])
    }

    /// Puts words from a physical address on.
    pub(crate) fn put(&mut self, at: u64, words: &[u64]) -> &mut Self {
        for (index, word) in words.iter().enumerate() {
            let start = usize::try_from(at).unwrap() + index * 8;
            self.0[start..start + 8].copy_from_slice(&word.to_le_bytes());
        }
        self
    }

    /// Fills a page with a byte.
    pub(crate) fn fill(&mut self, at: u64, byte: u8) -> &mut Self {
        let start = usize::try_from(at).unwrap();
        self.0[start..start + 4096].fill(byte);
        self
    }

    /// Looks at it as at a kernel's memory.
    pub(crate) fn with<T>(&self, levels: u8, look: impl FnOnce(&System<'_>, &Vmcore) -> T) -> T {
        let file = CoreFile::new().segment(0, &self.0).write();
        let core = Vmcore::open(file.path(), Access::Pread).unwrap();
        let info = VmcoreInfo::default();
        let linear = [(VirtAddr(DIRECT), base::addr::PhysAddr(0), LEN as u64)];
        let kernel = Kernel::new(&core, &info, &linear);
        let paging = Paging { levels, encryption_mask: 0 };
        let pages = LEN as u64 / PAGE;
        let layout = layout();
        let system = System {
            kernel: &kernel,
            variables: Variables::default(),
            layout,
            paging,
            vmemmap: VMEMMAP,
            pages,
        };
        look(&system, &core)
    }
}

/// The address at which the kernel sees physical memory.
pub(crate) fn virt(at: u64) -> VirtAddr {
    VirtAddr(DIRECT + at)
}

pub(crate) fn layout() -> Layout {
    let task = TaskLayout {
        tasks: 0,
        thread_node: 16,
        pid: 32,
        tgid: 36,
        comm: 40,
        flags: 56,
        mm: 64,
        stack: 72,
        signal: 80,
        ..TaskLayout::default()
    };
    let mm = MmLayout { pgd: 0, tree: Some(8), list: Some(24), map_count: Some(32), ..MmLayout::default() };
    let vma = VmaLayout { start: 0, end: 8, flags: 16, file: 24, offset: 32, ops: 40, next: Some(48) };
    let node = |pivots, slots, count| MapleNode { pivots, slots, count };
    Layout {
        task,
        signal: SignalLayout { thread_head: 0, pids: None },
        mm,
        vma,
        file: FileLayout { mapping: 0, dentry: 8, mount: 16 },
        dentry: DentryLayout { parent: 0, name: 8, name_len: 16, hash_back: Some(24) },
        mount: MountLayout { parent: 0, mountpoint: 8, inner: 16, root: 16 },
        cache: CacheLayout { head: 0, operations: None },
        node: NodeLayout { shift: 0, slots: 8 },
        folio: FolioLayout { mapping: 0, index: 8, page_size: 64 },
        maple: Some(MapleLayout { root: 0, range: node(8, 32, 4), allocation: node(8, 32, 4) }),
        node_slots: 8,
        task_size: 4096,
        auxv_len: 0,
        stack_size: 4096,
        ids: None,
        pid_number: None,
        vdso: None,
        fpu: FpuLayout::Unknown,
    }
}
