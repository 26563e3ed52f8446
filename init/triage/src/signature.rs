//! A name for a kind of crash, by which a fleet groups its crashes.
//!
//! It is a hash of the kind and of the functions on the stack that led to it, without what changes
//! from boot to boot and from build to build: addresses, offsets, what the compiler adds to names,
//! and the functions that every crash has. A kind that strikes wherever the CPU happens to be has no
//! functions in it.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::cause::Kind;

/// Functions that count.
const DEPTH: usize = 6;

/// A signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// 16 hex digits.
    pub hash: String,
    /// The functions that it is made of, the innermost first.
    pub functions: Vec<String>,
}

/// Where in a stack the story begins.
enum Start {
    /// Behind the function that panics.
    Panic,
    /// Behind the exception, or the panic if there is none.
    Exception,
    /// Behind the interrupt.
    Interrupt,
    /// The whole stack: of a task that waits.
    All,
    /// Nowhere: the stack says nothing.
    Nowhere,
}

fn start(kind: Kind) -> Start {
    match kind {
        Kind::Oops | Kind::MemoryCorruption | Kind::Warning | Kind::StackCorruption => Start::Exception,
        Kind::SoftLockup | Kind::HardLockup | Kind::RcuStall => Start::Interrupt,
        Kind::HungTask => Start::All,
        Kind::Sysrq | Kind::Module | Kind::Panic | Kind::InitDied | Kind::BootFailure => Start::Panic,
        Kind::Planned
        | Kind::Nmi
        | Kind::WatchdogPretimeout
        | Kind::MachineCheck
        | Kind::HardwareError
        | Kind::OutOfMemory
        | Kind::Unknown => Start::Nowhere,
    }
}

/// A function's name without what the compiler adds (`.cold`, `.isra.0`, `.constprop.0`, `.part.0`,
/// `.llvm.1`), and without the label in the middle of entry code that kallsyms has for it.
#[must_use]
pub fn plain(name: &str) -> &str {
    let name = name.split('.').next().unwrap_or(name);
    name.strip_suffix("_after_hwframe").unwrap_or(name)
}

fn is_panic(name: &str) -> bool {
    ["panic", "vpanic", "nmi_panic", "__stack_chk_fail", "crash_kexec", "__crash_kexec", "machine_kexec"]
        .contains(&name)
}

fn is_exception(name: &str) -> bool {
    let of_entry = ["asm_exc_", "exc_"].iter().any(|start| name.starts_with(start));
    let of_report =
        ["oops_end", "die", "die_addr", "page_fault_oops", "__warn", "report_bug", "kasan_report"];
    // 5.10 has its own names.
    let older =
        ["async_page_fault", "page_fault", "general_protection", "warn_slowpath_fmt", "__warn_printk"];
    of_entry || of_report.contains(&name) || older.contains(&name)
}

fn is_interrupt(name: &str) -> bool {
    let starts =
        ["asm_sysvec_", "sysvec_", "asm_common_interrupt", "asm_exc_nmi", "exc_nmi", "end_repeat_nmi"];
    starts.iter().any(|start| name.starts_with(start)) || name == "apic_timer_interrupt"
}

/// Functions in which a CPU is anywhere while it spins or waits, and those of every system call and thread.
fn is_noise(name: &str) -> bool {
    let exact = [
        "delay_tsc",
        "delay_halt",
        "__delay",
        "__const_udelay",
        "__udelay",
        "__ndelay",
        "cpu_relax",
        "rep_nop",
        "ktime_get",
        "rdtsc_ordered",
        "read_tsc",
        "touch_softlockup_watchdog",
        "touch_nmi_watchdog",
        "native_queued_spin_lock_slowpath",
        "queued_spin_lock_slowpath",
        "pv_queued_spin_lock_slowpath",
        "__raw_spin_lock",
        "_raw_spin_lock",
        "_raw_spin_lock_irqsave",
        "_raw_spin_lock_irq",
        "__schedule",
        "schedule",
        "preempt_schedule",
        "preempt_schedule_common",
        "__cond_resched",
        "entry_SYSCALL_64",
        "entry_SYSCALL_compat",
        "do_syscall_64",
        "do_syscall_x64",
        "x64_sys_call",
        "ret_from_fork",
        "ret_from_fork_asm",
        "kthread",
        "worker_thread",
        "process_one_work",
        "secondary_startup_64",
        "secondary_startup_64_no_verify",
    ];
    exact.contains(&name) || name.starts_with("__pv_queued_spin_lock") || name.starts_with("__pfx_")
}

/// The signature of a crash of this kind, with these functions on the stack, the innermost first.
#[must_use]
pub fn of(kind: Kind, functions: &[&str]) -> Signature {
    let names: Vec<&str> = functions.iter().map(|name| plain(name)).collect();
    let behind = |is: &dyn Fn(&str) -> bool| {
        let last = names.iter().rposition(|name| is(name)).and_then(|index| index.checked_add(1));
        last.and_then(|start| names.get(start..))
    };
    // A stack of interrupts has exceptions further out: only the innermost one counts.
    let exception = || {
        let first = names.iter().position(|name| is_exception(name))?;
        let run = names.get(first..)?.iter().take_while(|name| is_of_exception(name)).count();
        names.get(first.checked_add(run)?..)
    };
    let rest = match start(kind) {
        Start::Nowhere => None,
        Start::All => Some(names.as_slice()),
        Start::Panic => behind(&is_panic),
        Start::Exception => exception().or_else(|| behind(&is_panic)),
        Start::Interrupt => behind(&is_interrupt).or_else(|| behind(&is_panic)),
    };
    let wanted = rest.unwrap_or_default().iter().filter(|name| !is_noise(name));
    let functions: Vec<String> = wanted.take(DEPTH).map(|name| (*name).to_owned()).collect();
    let text = format!("1 {kind:?} {}", functions.join(" "));
    let digest = Sha256::digest(text.as_bytes());
    let hash = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    Signature { hash, functions }
}

/// What stands between the report of an exception and the function in which it was.
fn is_of_exception(name: &str) -> bool {
    let between = [
        "no_context",
        "__bad_area_nosemaphore",
        "bad_area_nosemaphore",
        "do_user_addr_fault",
        "do_kern_addr_fault",
        "handle_page_fault",
        "__do_page_fault",
        "do_trap",
        "do_error_trap",
        "handle_bug",
        "fixup_exception",
        "exception_enter",
        "bust_spinlocks",
        "kernelmode_fixup_or_oops",
        "__die",
        "__die_body",
        "probe_kernel_read",
        "do_general_protection",
    ];
    is_exception(name) || is_panic(name) || between.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYSRQ: [&str; 9] = [
        "machine_kexec",
        "__crash_kexec",
        "panic",
        "sysrq_handle_crash",
        "__handle_sysrq.cold",
        "write_sysrq_trigger",
        "proc_reg_write",
        "vfs_write",
        "entry_SYSCALL_64_after_hwframe",
    ];
    const OOPS: [&str; 12] = [
        "crash_kexec",
        "oops_end",
        "page_fault_oops.constprop.0",
        "do_user_addr_fault",
        "exc_page_fault",
        "asm_exc_page_fault",
        "wedge_deref.isra.0",
        "wedge_write",
        "vfs_write",
        "ksys_write",
        "do_syscall_64",
        "entry_SYSCALL_64_after_hwframe",
    ];

    #[test]
    fn the_story_begins_behind_what_every_crash_has() {
        let functions = |kind, stack: &[&str]| of(kind, stack).functions;
        assert_eq!(
            functions(Kind::Sysrq, &SYSRQ),
            ["sysrq_handle_crash", "__handle_sysrq", "write_sysrq_trigger", "proc_reg_write", "vfs_write"]
        );
        assert_eq!(functions(Kind::Oops, &OOPS), ["wedge_deref", "wedge_write", "vfs_write", "ksys_write"]);
        let lockup = [
            "panic",
            "watchdog_timer_fn",
            "__hrtimer_run_queues",
            "hrtimer_interrupt",
            "__sysvec_apic_timer_interrupt",
            "sysvec_apic_timer_interrupt",
            "asm_sysvec_apic_timer_interrupt",
            "delay_tsc",
            "wedge_spin",
            "wedge_write",
            "vfs_write",
        ];
        assert_eq!(functions(Kind::SoftLockup, &lockup), ["wedge_spin", "wedge_write", "vfs_write"]);
        let waits = ["__schedule", "schedule", "schedule_timeout", "wedge_wait", "vfs_write"];
        assert_eq!(functions(Kind::HungTask, &waits), ["schedule_timeout", "wedge_wait", "vfs_write"]);
        assert!(functions(Kind::Nmi, &SYSRQ).is_empty());
    }

    #[test]
    fn builds_and_boots_change_nothing_and_kinds_do() {
        let rebuilt: Vec<String> = OOPS.iter().map(|name| format!("{}.cold", plain(name))).collect();
        let rebuilt: Vec<&str> = rebuilt.iter().map(String::as_str).collect();
        assert_eq!(of(Kind::Oops, &OOPS), of(Kind::Oops, &rebuilt));
        assert_ne!(of(Kind::Oops, &OOPS).hash, of(Kind::Warning, &OOPS).hash);
        assert_ne!(of(Kind::Oops, &OOPS).hash, of(Kind::Oops, &SYSRQ).hash);
        assert_eq!(of(Kind::Oops, &OOPS).hash.len(), 16);
        // Kinds without functions differ by the kind alone.
        assert_ne!(of(Kind::Nmi, &[]).hash, of(Kind::OutOfMemory, &[]).hash);
    }

    #[test]
    fn an_exception_inside_an_interrupt_is_the_innermost_one() {
        let stack = [
            "oops_end",
            "exc_general_protection",
            "asm_exc_general_protection",
            "timer_of_a_module",
            "call_timer_fn",
            "asm_sysvec_apic_timer_interrupt",
            "memcpy",
            "asm_exc_page_fault",
            "user_copy",
        ];
        let found = of(Kind::Oops, &stack).functions;
        assert_eq!(found[..2], ["timer_of_a_module", "call_timer_fn"]);
    }
}
