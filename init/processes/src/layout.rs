//! Where the members of the kernel's structures lie: looked up by name once.

use symbols::knowledge::Knowledge;
use symbols::layouts;

pub use symbols::knowledge::layout::Missing;
use symbols::knowledge::layout::required;

layouts! {
    TaskLayout of "task_struct" {
        tasks: "tasks",
        thread_node: "thread_node",
        pid: "pid",
        tgid: "tgid",
        comm: "comm",
        flags: "flags",
        mm: "mm",
        stack: "stack",
        signal: "signal",
    } [
        state: "__state" | "state",
        parent: "real_parent",
        cred: "cred",
        on_cpu: "on_cpu",
        cpu: "thread_info.cpu" | "cpu",
        fs_base: "thread.fsbase",
        gs_base: "thread.gsbase",
        fpu: "thread.fpu",
        ds: "thread.ds",
        es: "thread.es",
        fs: "thread.fsindex",
        gs: "thread.gsindex",
    ]
    SignalLayout of "signal_struct" {
        thread_head: "thread_head",
    } [
        pids: "pids",
    ]
    MmLayout of "mm_struct" {
        pgd: "pgd",
    } [
        tree: "mm_mt",
        list: "mmap",
        map_count: "map_count",
        arg_start: "arg_start",
        arg_end: "arg_end",
        auxv: "saved_auxv",
        vdso: "context.vdso",
        vdso_image: "context.vdso_image",
    ]
    VmaLayout of "vm_area_struct" {
        start: "vm_start",
        end: "vm_end",
        flags: "vm_flags" | "flags",
        file: "vm_file",
        offset: "vm_pgoff",
        ops: "vm_ops",
    } [
        next: "vm_next",
    ]
    FileLayout of "file" {
        mapping: "f_mapping",
        dentry: "f_path.dentry",
        mount: "f_path.mnt",
    }
    DentryLayout of "dentry" {
        parent: "d_parent",
        name: "d_name.name",
        name_len: "d_name.len",
    } [
        hash_back: "d_hash.pprev",
    ]
    MountLayout of "mount" {
        parent: "mnt_parent",
        mountpoint: "mnt_mountpoint",
        inner: "mnt",
        root: "mnt.mnt_root",
    }
    CacheLayout of "address_space" {
        head: "i_pages.xa_head",
    } [
        operations: "a_ops",
    ]
    NodeLayout of "xa_node" {
        shift: "shift",
        slots: "slots",
    }
}

/// The page that heads a piece of the page cache: `struct folio`, before 5.16 `struct page`.
#[derive(Clone, Copy, Debug)]
pub struct FolioLayout {
    /// What it caches.
    pub mapping: u64,
    /// Its first page in the file.
    pub index: u64,
    /// Bytes of a `struct page`.
    pub page_size: u64,
}

impl FolioLayout {
    fn ask(known: &dyn Knowledge) -> Result<Self, Missing> {
        let structure = if known.size_of("folio").is_some() { "folio" } else { "page" };
        let page_size = known.size_of("page").filter(|size| (32..=256).contains(size));
        Ok(Self {
            mapping: required(known, structure, &["mapping"])?,
            index: required(known, structure, &["index"])?,
            page_size: page_size.ok_or(Missing { structure: "page", member: "size" })?,
        })
    }
}

/// Nodes of a maple tree (since 6.1): where pivots and slots lie, and how many slots there are.
#[derive(Clone, Copy, Debug)]
pub struct MapleNode {
    /// The first pivot.
    pub pivots: u64,
    /// The first slot.
    pub slots: u64,
    /// Slots; one more than pivots.
    pub count: u64,
}

/// The two kinds of nodes that the tree of mappings has.
#[derive(Clone, Copy, Debug)]
pub struct MapleLayout {
    /// `ma_root` in `struct maple_tree`.
    pub root: u64,
    /// `struct maple_range_64`: of leaves, too.
    pub range: MapleNode,
    /// `struct maple_arange_64`
    pub allocation: MapleNode,
}

impl MapleLayout {
    /// None where there are no maple trees.
    fn ask(known: &dyn Knowledge) -> Option<Self> {
        let node = |structure: &'static str| {
            let pivots = known.offset(structure, "pivot")?;
            let slots = known.offset(structure, "slot")?;
            let count = known.elements(structure, "pivot")?;
            let count = count.checked_add(1).filter(|count| *count <= 64)?;
            Some(MapleNode { pivots, slots, count })
        };
        Some(Self {
            root: known.offset("maple_tree", "ma_root")?,
            range: node("maple_range_64")?,
            allocation: node("maple_arange_64")?,
        })
    }
}

/// All of them.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the names of the structures")]
pub struct Layout {
    pub task: TaskLayout,
    pub signal: SignalLayout,
    pub mm: MmLayout,
    pub vma: VmaLayout,
    pub file: FileLayout,
    pub dentry: DentryLayout,
    pub mount: MountLayout,
    pub cache: CacheLayout,
    pub node: NodeLayout,
    pub folio: FolioLayout,
    pub maple: Option<MapleLayout>,
    /// Slots of a node of the page cache.
    pub node_slots: u64,
    /// Bytes of a `task_struct`.
    pub task_size: u64,
    /// Bytes of `mm_struct.saved_auxv`.
    pub auxv_len: u64,
    /// `THREAD_SIZE`: bytes of a kernel stack.
    pub stack_size: u64,
    /// `cred.uid`, `cred.gid`
    pub ids: Option<(u64, u64)>,
    /// `pid.numbers[0].nr`
    pub pid_number: Option<u64>,
    /// `vdso_image.data`, `vdso_image.size`
    pub vdso: Option<(u64, u64)>,
    /// How the FPU's registers are found.
    pub fpu: FpuLayout,
}

/// Where the FPU's registers of a task that does not run are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FpuLayout {
    /// In `struct fpu` itself, which lies in the task (before 5.16): offset in the task.
    Inline(u64),
    /// Behind the pointer `fpu.fpstate`, so far from its target; `fpu` lies in the task or, since
    /// 6.16, behind it: offset from the task.
    Behind {
        /// Of the pointer, from the task.
        pointer: u64,
        /// Of the registers, from where it leads to.
        registers: u64,
    },
    /// Not known.
    Unknown,
}

impl FpuLayout {
    fn ask(known: &dyn Knowledge, task: &TaskLayout, task_size: u64) -> Self {
        // Since 6.16 the FPU's state lies right behind the task (x86_task_fpu).
        let fpu = task.fpu.unwrap_or(task_size);
        let behind = known.offset("fpu", "fpstate").zip(known.offset("fpstate", "regs"));
        if let Some((fpstate, registers)) = behind {
            return Self::Behind { pointer: fpu.saturating_add(fpstate), registers };
        }
        let inline = known.offset("fpu", "state").filter(|_| task.fpu.is_some());
        inline.map_or(Self::Unknown, |state| Self::Inline(fpu.saturating_add(state)))
    }
}

impl Layout {
    /// Looks all members up. Fails at the first that nothing works without.
    pub fn ask(known: &dyn Knowledge) -> Result<Self, Missing> {
        let task = TaskLayout::ask(known)?;
        let task_size = known.size_of("task_struct").unwrap_or(0);
        let stack_size = known.size_of("thread_union");
        Ok(Self {
            task,
            signal: SignalLayout::ask(known)?,
            mm: MmLayout::ask(known)?,
            vma: VmaLayout::ask(known)?,
            file: FileLayout::ask(known)?,
            dentry: DentryLayout::ask(known)?,
            mount: MountLayout::ask(known)?,
            cache: CacheLayout::ask(known)?,
            node: NodeLayout::ask(known)?,
            folio: FolioLayout::ask(known)?,
            maple: MapleLayout::ask(known),
            node_slots: known.elements("xa_node", "slots").map_or(64, |count| count.min(64)),
            task_size,
            auxv_len: known.member_size("mm_struct", "saved_auxv").unwrap_or(0).min(4096),
            stack_size: stack_size
                .filter(|size| size.is_power_of_two() && *size <= 1 << 16)
                .unwrap_or(1 << 14),
            ids: known.offset("cred", "uid").zip(known.offset("cred", "gid")),
            pid_number: known.offset("pid", "numbers").zip(known.offset("upid", "nr")).map(sum),
            vdso: known.offset("vdso_image", "data").zip(known.offset("vdso_image", "size")),
            fpu: FpuLayout::ask(known, &task, task_size),
        })
    }
}

fn sum((one, other): (u64, u64)) -> u64 {
    one.saturating_add(other)
}
