//! Settings of the kernel that matter after a crash or a break-in, by their names in /proc/sys.

use base::addr::{VirtAddr, to_usize};
use base::fields::Fields;
use serde_json::Value;
use symbols::knowledge::Knowledge;
use vmcore::kernel::KernelError;

use crate::artefacts::{Ground, Row};

/// How the kernel keeps a setting, and what it is if nobody changes it and the kernel's configuration
/// does not say it.
#[derive(Clone, Copy)]
enum Kind {
    /// `int`
    Int(Option<i32>),
    /// `unsigned long`
    Long(Option<u64>),
    /// An array of so many characters.
    Text(usize, &'static str),
    /// A member of the first network namespace (`struct net`) of one byte or four.
    Net(&'static str, Option<i32>),
}

use Kind::{Int, Long, Net, Text};

/// Those that a crash changes by itself are not among them (`ftrace_enabled`).
///
/// Names, the variables that have had them, and their kinds (kernel/sysctl.c and where the variables
/// are defined).
const ALL: &[(&str, &[&str], Kind)] = &[
    ("fs.protected_fifos", &["sysctl_protected_fifos"], Int(Some(0))),
    ("fs.protected_hardlinks", &["sysctl_protected_hardlinks"], Int(Some(0))),
    ("fs.protected_regular", &["sysctl_protected_regular"], Int(Some(0))),
    ("fs.protected_symlinks", &["sysctl_protected_symlinks"], Int(Some(0))),
    ("fs.suid_dumpable", &["suid_dumpable"], Int(Some(0))),
    ("kernel.core_pattern", &["core_pattern"], Text(128, "core")),
    ("kernel.core_uses_pid", &["core_uses_pid"], Int(Some(0))),
    ("kernel.dmesg_restrict", &["dmesg_restrict"], Int(None)),
    ("kernel.hotplug", &["uevent_helper"], Text(256, "")),
    ("kernel.hung_task_panic", &["sysctl_hung_task_panic"], Int(None)),
    ("kernel.hung_task_timeout_secs", &["sysctl_hung_task_timeout_secs"], Long(None)),
    ("kernel.io_uring_disabled", &["sysctl_io_uring_disabled"], Int(Some(0))),
    ("kernel.kexec_load_disabled", &["kexec_load_disabled"], Int(Some(0))),
    ("kernel.kptr_restrict", &["kptr_restrict"], Int(Some(0))),
    ("kernel.modprobe", &["modprobe_path"], Text(256, "/sbin/modprobe")),
    ("kernel.modules_disabled", &["modules_disabled"], Int(Some(0))),
    ("kernel.panic", &["panic_timeout"], Int(None)),
    ("kernel.panic_on_oops", &["panic_on_oops"], Int(None)),
    ("kernel.panic_on_rcu_stall", &["sysctl_panic_on_rcu_stall"], Int(None)),
    ("kernel.panic_on_warn", &["panic_on_warn"], Int(Some(0))),
    ("kernel.perf_event_paranoid", &["sysctl_perf_event_paranoid"], Int(Some(2))),
    ("kernel.poweroff_cmd", &["poweroff_cmd"], Text(256, "/sbin/poweroff")),
    ("kernel.print-fatal-signals", &["print_fatal_signals"], Int(Some(0))),
    ("kernel.randomize_va_space", &["randomize_va_space"], Int(Some(2))),
    ("kernel.softlockup_panic", &["softlockup_panic"], Int(None)),
    ("kernel.sysrq", &["sysrq_enabled"], Int(None)),
    ("kernel.unprivileged_bpf_disabled", &["sysctl_unprivileged_bpf_disabled"], Int(None)),
    ("kernel.unprivileged_userns_clone", &["unprivileged_userns_clone"], Int(None)),
    ("kernel.watchdog_thresh", &["watchdog_thresh"], Int(Some(10))),
    ("kernel.yama.ptrace_scope", &["ptrace_scope"], Int(Some(1))),
    ("net.core.bpf_jit_enable", &["bpf_jit_enable"], Int(None)),
    ("net.core.bpf_jit_harden", &["bpf_jit_harden"], Int(Some(0))),
    ("net.ipv4.icmp_echo_ignore_all", &[], Net("ipv4.sysctl_icmp_echo_ignore_all", Some(0))),
    ("net.ipv4.ip_default_ttl", &[], Net("ipv4.sysctl_ip_default_ttl", Some(64))),
    ("net.ipv4.ip_nonlocal_bind", &[], Net("ipv4.sysctl_ip_nonlocal_bind", Some(0))),
    ("net.ipv4.tcp_syncookies", &[], Net("ipv4.sysctl_tcp_syncookies", Some(1))),
    ("net.ipv4.tcp_timestamps", &[], Net("ipv4.sysctl_tcp_timestamps", Some(1))),
    ("vm.dirty_background_ratio", &["dirty_background_ratio"], Int(Some(10))),
    ("vm.dirty_expire_centisecs", &["dirty_expire_interval"], Int(Some(3000))),
    ("vm.dirty_ratio", &["vm_dirty_ratio"], Int(Some(20))),
    ("vm.dirty_writeback_centisecs", &["dirty_writeback_interval"], Int(Some(500))),
    ("vm.max_map_count", &["sysctl_max_map_count"], Int(None)),
    ("vm.min_free_kbytes", &["min_free_kbytes"], Int(None)),
    ("vm.mmap_min_addr", &["dac_mmap_min_addr"], Long(None)),
    ("vm.oom_kill_allocating_task", &["sysctl_oom_kill_allocating_task"], Int(Some(0))),
    ("vm.overcommit_memory", &["sysctl_overcommit_memory"], Int(Some(0))),
    ("vm.overcommit_ratio", &["sysctl_overcommit_ratio"], Int(Some(50))),
    ("vm.panic_on_oom", &["sysctl_panic_on_oom"], Int(Some(0))),
    ("vm.swappiness", &["vm_swappiness"], Int(Some(60))),
    ("vm.unprivileged_userfaultfd", &["sysctl_unprivileged_userfaultfd"], Int(Some(0))),
    ("vm.vfs_cache_pressure", &["sysctl_vfs_cache_pressure"], Int(Some(100))),
];

/// A setting that this kernel has.
pub(super) struct Found {
    name: &'static str,
    kind: Kind,
    at: VirtAddr,
    /// Bytes, of a member.
    size: u64,
}

/// Those that this kernel has: others it was built without, or keeps elsewhere.
pub(super) fn ask(known: &dyn Knowledge) -> Vec<Found> {
    let net = known.symbol("init_net");
    let find = |&(name, symbols, kind): &(&'static str, &[&str], Kind)| {
        let (at, size) = match kind {
            Net(path, _) => {
                let at = net?.checked_add(known.offset("net", path)?)?;
                (at, known.member_size("net", path)?)
            }
            Int(_) => (symbols.iter().find_map(|symbol| known.symbol(symbol))?, 4),
            Long(_) | Text(..) => (symbols.iter().find_map(|symbol| known.symbol(symbol))?, 8),
        };
        Some(Found { name, kind, at, size })
    };
    ALL.iter().filter_map(find).collect()
}

impl Found {
    pub(super) fn row(&self, ground: &Ground<'_>) -> Row {
        let mut row = Row::at(self.at);
        row.set("linux.sysctl.name", self.name);
        let value = self.value(ground);
        let usual = match self.kind {
            Int(usual) | Net(_, usual) => usual.map(Value::from),
            Long(usual) => usual.map(Value::from),
            Text(_, usual) => Some(usual.into()),
        };
        if let (Ok(value), Some(usual)) = (&value, usual) {
            row.set("linux.sysctl.differs", *value != usual);
            row.set("linux.sysctl.default", usual);
        }
        row.read("linux.sysctl.value", value);
        row
    }

    fn value(&self, ground: &Ground<'_>) -> Result<Value, KernelError> {
        let system = ground.system;
        let what = "a setting of the kernel";
        Ok(match self.kind {
            Long(_) => system.word(self.at, 0, what)?.into(),
            Net(..) if matches!(self.size, 1 | 2) => {
                let bytes = system.bytes(self.at, 0, to_usize(self.size), what)?;
                let short = Fields(&bytes).u16(0).or_else(|| Fields(&bytes).u8(0).map(u16::from));
                short.unwrap_or(0).into()
            }
            Int(_) | Net(..) => system.half(self.at, 0, what)?.cast_signed().into(),
            Text(len, _) => {
                let bytes = system.bytes(self.at, 0, len, what)?;
                Fields(&bytes).text(0, len).unwrap_or_default().into()
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_once_and_in_order() {
        assert!(ALL.is_sorted_by(|one, other| one.0 < other.0));
    }
}
