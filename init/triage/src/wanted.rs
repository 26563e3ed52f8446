//! What the walkers ask of a kernel, besides what the crate `processes` asks: all of it at once, so
//! that the answers can be written down while the kernel lives.

use base::addr::VirtAddr;
use processes::layout::Layout;
use processes::system::Variables;
use symbols::knowledge::layout::Missing;
use symbols::knowledge::{self, Knowledge};
use symbols::layouts;
use symbols::modules;
use symbols::orc::Tables;
use symbols::unwind::SleeperLayout;
use vmcore::kernel::Kernel;

use crate::artefacts;

layouts! {
    MountsLayout of "mount" {
        mounts: "mnt_mounts",
        child: "mnt_child",
        device: "mnt_devname",
        superblock: "mnt.mnt_sb",
    }
    SuperLayout of "super_block" {
        kind: "s_type",
        id: "s_id",
    }
    KindLayout of "file_system_type" {
        name: "name",
    }
    NamespacesLayout of "nsproxy" {
        mounts: "mnt_ns",
    }
    MountNamespaceLayout of "mnt_namespace" {
        root: "root",
    }
}

/// Mounts.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the names of the structures")]
pub struct Mounts {
    pub mount: MountsLayout,
    pub superblock: SuperLayout,
    pub kind: KindLayout,
    pub namespaces: NamespacesLayout,
    pub namespace: MountNamespaceLayout,
    /// `task_struct.nsproxy`
    pub of_task: u64,
}

impl Mounts {
    pub(crate) fn ask(known: &dyn Knowledge) -> Result<Self, Missing> {
        Ok(Self {
            mount: MountsLayout::ask(known)?,
            superblock: SuperLayout::ask(known)?,
            kind: KindLayout::ask(known)?,
            namespaces: NamespacesLayout::ask(known)?,
            namespace: MountNamespaceLayout::ask(known)?,
            of_task: known
                .offset("task_struct", "nsproxy")
                .ok_or(Missing { structure: "task_struct", member: "nsproxy" })?,
        })
    }
}

/// Counters of memory, as /proc/meminfo calls them, with their names in the kernel (include/linux/mmzone.h).
pub(crate) const OF_NODES: [(&str, &str); 9] = [
    ("FilePages", "NR_FILE_PAGES"),
    ("Dirty", "NR_FILE_DIRTY"),
    ("Writeback", "NR_WRITEBACK"),
    ("AnonPages", "NR_ANON_MAPPED"),
    ("Mapped", "NR_FILE_MAPPED"),
    ("Shmem", "NR_SHMEM"),
    ("SReclaimable", "NR_SLAB_RECLAIMABLE_B"),
    ("SUnreclaim", "NR_SLAB_UNRECLAIMABLE_B"),
    ("PageTables", "NR_PAGETABLE"),
];
/// Kinds of hardware errors from which the kernel recovers (`enum hwerr_error_type`,
/// include/uapi/linux/vmcore.h, 6.19).
const HARDWARE: [(&str, &str); 5] = [
    ("CPU", "HWERR_RECOV_CPU"),
    ("memory", "HWERR_RECOV_MEMORY"),
    ("PCI", "HWERR_RECOV_PCI"),
    ("CXL", "HWERR_RECOV_CXL"),
    ("other parts", "HWERR_RECOV_OTHERS"),
];

/// Numbers of the whole machine.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "the names of the kernel")]
pub struct Machine {
    pub tainted_mask: Option<VirtAddr>,
    pub jiffies: Option<VirtAddr>,
    pub avenrun: Option<VirtAddr>,
    pub command_line: Option<VirtAddr>,
    pub total_pages: Option<VirtAddr>,
    pub swap_total: Option<VirtAddr>,
    pub swap_free: Option<VirtAddr>,
    /// Free pages: the address of the counter.
    pub free_pages: Option<VirtAddr>,
    /// Counters by the name of /proc/meminfo.
    pub counters: Vec<(&'static str, VirtAddr)>,
    /// Hardware errors by their kind: count and time.
    pub hardware: Vec<(&'static str, VirtAddr, VirtAddr)>,
    /// What NTP says of the clock: status, estimated error, largest error (kernel/time/ntp.c).
    pub clock: [Option<VirtAddr>; 3],
}

impl Machine {
    fn ask(known: &dyn Knowledge) -> Self {
        // An array of atomic_long_t.
        let counter = |array: &str, index: Option<u64>| {
            known.symbol(array)?.checked_add(index.filter(|index| *index < 256)?.checked_mul(8)?)
        };
        let of_nodes = OF_NODES.iter().filter_map(|&(name, item)| {
            let of_node = counter("vm_node_stat", known.value("node_stat_item", item));
            // Page tables were counted by zones before 5.11.
            let of_zone = || counter("vm_zone_stat", known.value("zone_stat_item", item));
            Some((name, of_node.or_else(of_zone)?))
        });
        let (base, size) = (known.symbol("hwerr_data"), known.size_of("hwerr_info"));
        let (count, time) = (known.offset("hwerr_info", "count"), known.offset("hwerr_info", "timestamp"));
        let hardware = HARDWARE.iter().filter_map(|&(name, item)| {
            let index = known.value("hwerr_error_type", item).filter(|index| *index < 64)?;
            let row = base?.checked_add(index.checked_mul(size?)?)?;
            Some((name, row.checked_add(count?)?, row.checked_add(time?)?))
        });
        // Variables of their own until 6.13, members of the first `tk_ntp_data` since then.
        let clock = |name: &str| {
            let member = || known.symbol("tk_ntp_data")?.checked_add(known.offset("ntp_data", name)?);
            known.symbol(name).or_else(member)
        };
        Self {
            clock: ["time_status", "time_esterror", "time_maxerror"].map(clock),
            counters: of_nodes.collect(),
            hardware: hardware.collect(),
            tainted_mask: known.symbol("tainted_mask"),
            jiffies: known.symbol("jiffies_64"),
            avenrun: known.symbol("avenrun"),
            command_line: known.symbol("saved_command_line"),
            total_pages: known.symbol("_totalram_pages"),
            swap_total: known.symbol("total_swap_pages"),
            swap_free: known.symbol("nr_swap_pages"),
            free_pages: counter("vm_zone_stat", known.value("zone_stat_item", "NR_FREE_PAGES")),
        }
    }
}

/// Where each CPU has what it runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpus {
    /// `__per_cpu_offset`: for each CPU how far its variables are.
    pub offsets: Option<VirtAddr>,
    /// The current task, before that is added.
    pub current: Option<VirtAddr>,
    /// `nr_cpu_ids`; not there where the kernel is for one CPU.
    pub number: Option<VirtAddr>,
    /// `__cpu_online_mask`
    pub online: Option<VirtAddr>,
    /// `__cpu_present_mask`
    pub present: Option<VirtAddr>,
    /// `__cpu_possible_mask`
    pub possible: Option<VirtAddr>,
}

impl Cpus {
    /// Where a CPU has a variable of its own.
    pub(crate) fn of(&self, kernel: &Kernel<'_>, variable: Option<VirtAddr>, cpu: u32) -> Option<VirtAddr> {
        let place = self.offsets?.checked_add(u64::from(cpu).checked_mul(8)?)?;
        let offset = kernel.read_u64(place, "__per_cpu_offset").ok()?;
        Some(VirtAddr(variable?.0.wrapping_add(offset)))
    }

    fn ask(known: &dyn Knowledge) -> Self {
        // In a structure of hot variables from 6.2 (e57ef2ed97c1) to 6.14.
        let hot = known.symbol("pcpu_hot").zip(known.offset("pcpu_hot", "current_task"));
        let hot = hot.and_then(|(hot, offset)| hot.checked_add(offset));
        Self {
            offsets: known.symbol("__per_cpu_offset"),
            current: hot.or_else(|| known.symbol("current_task")),
            number: known.symbol("nr_cpu_ids"),
            online: known.symbol("__cpu_online_mask"),
            present: known.symbol("__cpu_present_mask"),
            possible: known.symbol("__cpu_possible_mask"),
        }
    }
}

/// All of it.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the names of the structures")]
pub struct Wanted {
    pub machine: Machine,
    pub cpus: Cpus,
    pub mounts: Result<Mounts, Missing>,
    pub sleeper: Option<SleeperLayout>,
    /// `module.taints`
    pub module_taints: Option<u64>,
}

impl Wanted {
    /// Asks for it.
    #[must_use]
    pub fn ask(known: &dyn Knowledge) -> Self {
        Self {
            machine: Machine::ask(known),
            cpus: Cpus::ask(known),
            mounts: Mounts::ask(known),
            sleeper: SleeperLayout::ask(known),
            module_taints: known.offset("module", "taints"),
        }
    }
}

/// Asks all that walkers ask, so that the answers are written down. `kernel` is the memory, if it can be
/// read: without it nothing is asked that depends on what is in it.
pub fn ask_all(kernel: Option<&Kernel<'_>>, known: &dyn Knowledge) {
    let _ = Layout::ask(known);
    let _ = Variables::ask(known);
    let _ = Wanted::ask(known);
    artefacts::ask_all(known);
    if let Some(kernel) = kernel {
        let _ = knowledge::hertz(kernel, known);
        let orc = Tables::find(kernel, known);
        let _ = modules::list(kernel, known, orc.and_then(|orc| orc.layout));
    }
    for name in CODE {
        let _ = known.symbol(name);
    }
}

/// Modules whose types are asked for; they have them if the kernel was built so
/// (`CONFIG_DEBUG_INFO_BTF_MODULES`).
pub const MODULES: [&str; 2] = ["dm_mod", "md_mod"];

/// What the unwinder asks.
const CODE: [&str; 8] = [
    "_text",
    "_stext",
    "_etext",
    "_sinittext",
    "_einittext",
    "ret_from_fork_asm",
    "ret_from_fork",
    "linux_banner",
];
