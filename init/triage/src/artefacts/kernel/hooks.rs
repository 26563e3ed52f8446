//! Tables of functions that the kernel calls, and that rootkits change: what they have must lie in the
//! kernel's own code.

use base::addr::{VirtAddr, to_u64, to_usize};
use base::fields::Fields;
use symbols::knowledge::Knowledge;
use symbols::list;
use vmcore::kernel::KernelError;

use crate::artefacts::{Ground, Row, Rows, Stop};

/// System calls that all kernels since 5.10 have (arch/x86/entry/syscalls/syscall_64.tbl).
const SYSTEM_CALLS: u64 = 441;
/// Entries of the table of interrupts, and bytes of one (arch/x86/include/asm/desc_defs.h).
const INTERRUPTS: u64 = 256;
const GATE: usize = 16;
/// Bytes of the handlers of exceptions from the time of boot: vectors that nobody uses keep them
/// (arch/x86/include/asm/segment.h, `NUM_EXCEPTION_VECTORS`).
const EARLY: u64 = 32 * 13;
/// Hooks of security modules that are believed, of all and of one.
const MAX_HOOKS: u64 = 16_384;
const MAX_MODULES: usize = 64;
/// Bytes of a table of functions that are believed.
const MAX_TABLE: u64 = 4096;
/// Pointers of `struct seq_operations`.
const SEQUENCE: u64 = 32;
/// Structures of functions of files that show processes, sockets, modules and names.
const FILES: [&str; 14] = [
    "proc_root_operations",
    "proc_tgid_base_operations",
    "proc_tid_base_operations",
    "proc_task_operations",
    "proc_fd_operations",
    "proc_reg_file_ops",
    "proc_iter_file_ops",
    "proc_dir_operations",
    "kernfs_dir_fops",
    "kernfs_file_fops",
    "simple_dir_operations",
    "shmem_file_operations",
    "socket_file_ops",
    "def_blk_fops",
];
const SEQUENCES: [&str; 11] = [
    "tcp4_seq_ops",
    "tcp6_seq_ops",
    "udp_seq_ops",
    "udp6_seq_ops",
    "raw_seq_ops",
    "unix_seq_ops",
    "packet_seq_ops",
    "netlink_seq_ops",
    "modules_op",
    "kallsyms_op",
    "mounts_op",
];

/// Where security modules have hooked in.
enum Security {
    /// Lists, one for each hook (before 6.12): the first, and how many.
    Lists(VirtAddr, u64),
    /// Slots (since 6.12, 417c5643cd67): the first, how many, bytes of one, and the place of the hook.
    Slots(VirtAddr, u64, u64, u64),
}

/// Tables that are looked at.
pub(super) struct Tables {
    text: Option<(u64, u64)>,
    calls: Option<VirtAddr>,
    interrupts: Option<VirtAddr>,
    /// `early_idt_handler_array`
    early: Option<VirtAddr>,
    security: Option<Security>,
    /// `security_hook_list.hook`, and `.list`, which newer kernels do without.
    hook: Option<(u64, Option<u64>)>,
    /// Structures with their names and bytes.
    files: Vec<(&'static str, VirtAddr, u64)>,
}

/// What a table has.
struct Found {
    /// The words, by their numbers.
    entries: Vec<(u64, u64)>,
    error: Option<String>,
}

impl Tables {
    pub(super) fn ask(known: &dyn Knowledge) -> Self {
        let size = known.size_of("file_operations").filter(|size| *size <= MAX_TABLE);
        let files = FILES.iter().filter_map(|name| Some((*name, known.symbol(name)?, size?)));
        let sequences = SEQUENCES.iter().filter_map(|name| Some((*name, known.symbol(name)?, SEQUENCE)));
        let lists = || {
            let count = known.size_of("security_hook_heads")? / 8;
            Some(Security::Lists(known.symbol("security_hook_heads")?, count))
        };
        let slots = || {
            let size = known.size_of("lsm_static_call").filter(|size| *size > 0)?;
            let count = known.size_of("lsm_static_calls_table")?.checked_div(size)?;
            let hook = known.offset("lsm_static_call", "hl")?;
            Some(Security::Slots(known.symbol("static_calls_table")?, count, size, hook))
        };
        Self {
            text: known.part(&["_stext", "_text"], &["_etext"]),
            calls: known.symbol("sys_call_table"),
            interrupts: known.symbol("idt_table"),
            early: known.symbol("early_idt_handler_array"),
            security: lists().or_else(slots),
            hook: known
                .offset("security_hook_list", "hook")
                .map(|hook| (hook, known.offset("security_hook_list", "list"))),
            files: files.chain(sequences).collect(),
        }
    }

    pub(super) fn walk(&self, ground: &Ground<'_>, rows: &mut Rows<'_>) -> Result<(), Stop> {
        let Some(text) = self.text else {
            return rows.miss("tables of functions", &"the kernel has no symbols _stext and _etext");
        };
        let absent = |name: &str| Found { entries: Vec::new(), error: Some(format!("there is no {name}")) };
        let calls = self.calls.map_or_else(|| absent("sys_call_table"), |at| words(ground, at, SYSTEM_CALLS));
        tell(ground, rows, text, ("system calls", self.calls), calls)?;
        let mut gates = self.interrupts.map_or_else(|| absent("idt_table"), |at| interrupts(ground, at));
        let is_early = |word: u64| {
            let inside = self.early.and_then(|early| word.checked_sub(early.0));
            inside.is_some_and(|inside| inside < EARLY)
        };
        gates.entries.retain(|(_, word)| !is_early(*word));
        tell(ground, rows, text, ("interrupts", self.interrupts), gates)?;
        let at = self.security.as_ref().map(|security| match security {
            Security::Lists(at, _) | Security::Slots(at, ..) => *at,
        });
        tell(ground, rows, text, ("security modules", at), self.security(ground))?;
        for &(name, at, size) in &self.files {
            let mut found = words(ground, at, size / 8);
            // The module that it belongs to, and flags, are among them: both are no kernel addresses
            // of what is built in.
            found.entries.retain(|(_, word)| *word >= 0xff00_0000_0000_0000);
            tell(ground, rows, text, (name, Some(at)), found)?;
        }
        Ok(())
    }

    fn security(&self, ground: &Ground<'_>) -> Found {
        let system = ground.system;
        let (Some(security), Some((hook, list))) = (&self.security, self.hook) else {
            let why = "the kernel's types or symbols do not tell where they have hooked in";
            return Found { entries: Vec::new(), error: Some(why.to_owned()) };
        };
        let (mut entries, mut error) = (Vec::new(), None);
        let mut function = |number, at: VirtAddr| match system.word(at, hook, "security_hook_list.hook") {
            Ok(word) => entries.push((number, word)),
            Err(failed) => error = Some(base::log::chain(&failed)),
        };
        match *security {
            Security::Lists(first, count) => {
                for number in 0..count.min(MAX_HOOKS) {
                    let head = system.pointer(first, number.saturating_mul(8), "security_hook_heads");
                    let Ok(Some(node)) = head else { continue };
                    // struct hlist_node begins with the pointer to the next one.
                    let (nodes, _) = list::chain(system.kernel, node, 0, MAX_MODULES);
                    for node in nodes {
                        function(number, VirtAddr(node.0.wrapping_sub(list.unwrap_or(0))));
                    }
                }
            }
            Security::Slots(first, count, size, at) => {
                for number in 0..count.min(MAX_HOOKS) {
                    let offset = number.saturating_mul(size).saturating_add(at);
                    // Slots that no module has taken are empty.
                    if let Ok(Some(taken)) = system.pointer(first, offset, "lsm_static_call.hl") {
                        function(number, taken);
                    }
                }
            }
        }
        Found { entries, error }
    }
}

fn failed(error: &KernelError) -> Found {
    Found { entries: Vec::new(), error: Some(base::log::chain(error)) }
}

fn words(ground: &Ground<'_>, at: VirtAddr, count: u64) -> Found {
    match ground.system.bytes(at, 0, to_usize(count.saturating_mul(8)), "a table of functions") {
        Ok(bytes) => {
            let words = bytes.chunks_exact(8).filter_map(|word| Fields(word).u64(0));
            Found { entries: (0..).zip(words).collect(), error: None }
        }
        Err(error) => failed(&error),
    }
}

fn interrupts(ground: &Ground<'_>, at: VirtAddr) -> Found {
    let len = to_usize(INTERRUPTS).saturating_mul(GATE);
    match ground.system.bytes(at, 0, len, "idt_table") {
        Ok(bytes) => {
            let gates = (0..).zip(bytes.chunks_exact(GATE));
            Found {
                entries: gates.filter_map(|(number, gate)| Some((number, target(gate)?))).collect(),
                error: None,
            }
        }
        Err(error) => failed(&error),
    }
}

/// Where a gate leads to, if it is in use (`struct gate_struct`).
fn target(gate: &[u8]) -> Option<u64> {
    let gate = Fields(gate);
    let is_present = gate.u16(4)? >> 15 == 1;
    let (low, middle, high) = (gate.u16(0)?, gate.u16(6)?, gate.u32(8)?);
    is_present.then_some(u64::from(low) | u64::from(middle) << 16 | u64::from(high) << 32)
}

/// A row for each that leads elsewhere, and one that says how many there are.
fn tell(
    ground: &Ground<'_>,
    rows: &mut Rows<'_>,
    (start, end): (u64, u64),
    (name, at): (&str, Option<VirtAddr>),
    found: Found,
) -> Result<(), Stop> {
    let mut elsewhere = 0_u64;
    for &(number, word) in found.entries.iter().filter(|(_, word)| !(start..end).contains(word)) {
        elsewhere = elsewhere.saturating_add(1);
        let mut row = at.map_or_else(Row::default, Row::at);
        row.set("linux.hooks.table", name);
        row.set("linux.hooks.entry", number);
        row.set("linux.hooks.target", format!("{word:#x}"));
        if let Some(place) = ground.code.place(VirtAddr(word)) {
            row.set("linux.hooks.function", place.name.into_owned());
            row.set("linux.hooks.module", place.module.unwrap_or_default());
        }
        row.set("linux.suspicious", vec!["leads out of the kernel's own code"]);
        rows.add(&row)?;
    }
    let mut row = at.map_or_else(Row::default, Row::at);
    row.set("linux.hooks.table", name);
    row.set("linux.hooks.checked", to_u64(found.entries.len()));
    row.set("linux.hooks.elsewhere", elsewhere);
    if let Some(error) = found.error {
        row.error("linux.hooks", &error);
    }
    rows.add(&row)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_lead_somewhere() {
        let mut gate = [0; 16];
        assert_eq!(target(&gate), None, "not in use");
        gate[0..2].copy_from_slice(&0x5678_u16.to_le_bytes());
        gate[4..6].copy_from_slice(&0x8e00_u16.to_le_bytes());
        gate[6..8].copy_from_slice(&0x8234_u16.to_le_bytes());
        gate[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(target(&gate), Some(0xffff_ffff_8234_5678));
        assert_eq!(target(&gate[..8]), None);
    }
}
