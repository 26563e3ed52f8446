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
/// Functions of a report that may be unknown.
const NEW: usize = 6;

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

/// Whether crashes of a kind are told apart by their functions.
#[must_use]
pub fn has_functions(kind: Kind) -> bool {
    !matches!(start(kind), Start::Nowhere)
}

/// A function's name without what the compiler adds (`.cold`, `.isra.0`, `.constprop.0`, `.part.0`,
/// `.llvm.1`), and without the label in the middle of entry code that kallsyms has for it.
#[must_use]
pub fn plain(name: &str) -> &str {
    let name = name.split('.').next().unwrap_or(name);
    name.strip_suffix("_after_hwframe").unwrap_or(name)
}

/// The functions by which a kernel ends itself: registers of the crash may be those of one of them, or of
/// the place at which an exception was.
fn is_panic(name: &str) -> bool {
    let all = [
        "panic",
        "vpanic",
        "nmi_panic",
        "__stack_chk_fail",
        "crash_kexec",
        "__crash_kexec",
        "machine_kexec",
        "crash_setup_regs",
        "check_panic_on_warn",
    ];
    all.contains(&name)
}

fn is_exception(name: &str) -> bool {
    let of_entry = ["asm_exc_", "exc_"].iter().any(|start| name.starts_with(start));
    let of_report = [
        "oops_end",
        "die",
        "die_addr",
        "page_fault_oops",
        "__warn",
        "report_bug",
        "__report_bug",
        "report_bug_entry",
        "kasan_report",
    ];
    // Of kernels before 5.8, and warnings that are calls.
    let older =
        ["async_page_fault", "page_fault", "general_protection", "warn_slowpath_fmt", "__warn_printk"];
    of_entry || of_report.contains(&name) || older.contains(&name)
}

/// Where an interrupt, or an NMI, enters the kernel.
fn is_interrupt_entry(name: &str) -> bool {
    let older = ["apic_timer_interrupt", "nmi"];
    let all = ["asm_common_interrupt", "asm_exc_nmi", "end_repeat_nmi"];
    name.starts_with("asm_sysvec_") || all.contains(&name) || older.contains(&name)
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

/// A function on a stack: its name, and whether it is a module's.
pub type Called<'a> = (&'a str, bool);

/// The place in a stack, the innermost function first, at which the story of a crash begins: behind what the
/// crash itself has put there.
fn story(kind: Kind, names: &[&str]) -> Option<usize> {
    // Of several on a stack the innermost counts: the others are what that one interrupted.
    let behind = |is: &dyn Fn(&str) -> bool| {
        let first = names.iter().position(|name| is(name))?;
        let run = names.get(first..)?.iter().take_while(|name| is(name)).count();
        first.checked_add(run)
    };
    let interrupted = || names.iter().position(|name| is_interrupt_entry(name))?.checked_add(1);
    // None of the functions that panic ever returns: one that is there is of this crash. Where none is, the
    // registers are those of the fault, or of a CPU that was stopped.
    let reports = names.first().is_some_and(|name| is_of_exception(name));
    match (start(kind), behind(&is_panic)) {
        (Start::Nowhere, _) => None,
        (Start::Exception, None) if reports => {
            behind(&is_of_exception).map(|end| behind_entry(kind, names, end))
        }
        (Start::All, _) | (_, None) => Some(0),
        (Start::Panic, Some(panic)) => Some(panic),
        (Start::Exception, Some(_)) => behind(&is_of_exception).map(|end| behind_entry(kind, names, end)),
        (Start::Interrupt, Some(panic)) => interrupted().or(Some(panic)),
    }
}

/// Functions of a report that have new names may stand between those that are known and the entry.
fn behind_entry(kind: Kind, names: &[&str], end: usize) -> usize {
    let is_entry = |name: &&str| name.starts_with("asm_exc_");
    let (report, rest) = names.split_at_checked(end).unwrap_or((names, &[]));
    // A warning is always an exception; a stack's protector and checkers of memory are called.
    let is_called = kind != Kind::Warning && report.iter().all(|name| is_panic(name));
    if report.iter().any(is_entry) || is_called {
        return end;
    }
    let entry = rest.iter().take(NEW).position(is_entry);
    entry.map_or(end, |entry| end.saturating_add(entry).saturating_add(1))
}

/// Functions of a stack that count, by their places, the innermost first.
fn counted(kind: Kind, functions: &[Called<'_>]) -> Vec<usize> {
    let names: Vec<&str> = functions.iter().map(|(name, _)| plain(name)).collect();
    let Some(begin) = story(kind, &names) else { return Vec::new() };
    // What a module calls while it spins comes and goes.
    let module = functions.iter().skip(begin).position(|(_, module)| *module);
    let helpers = module.filter(|_| matches!(start(kind), Start::Interrupt)).unwrap_or(0);
    let counts = |(_, name): &(usize, &&str)| !is_noise(name);
    let all = names.iter().enumerate().skip(begin).skip(helpers);
    all.filter(counts).map(|(place, _)| place).collect()
}

/// The place of the function in which it happened, in a stack, the innermost function first.
#[must_use]
pub fn first(kind: Kind, functions: &[Called<'_>]) -> Option<usize> {
    counted(kind, functions).first().copied()
}

/// The signature of a crash of this kind, with these functions on the stack, the innermost first.
#[must_use]
pub fn of(kind: Kind, stack: &[Called<'_>]) -> Signature {
    let names =
        counted(kind, stack).into_iter().filter_map(|place| stack.get(place)).map(|(name, _)| plain(name));
    let mut functions: Vec<String> = Vec::new();
    for name in names {
        // However deep a recursion was.
        if functions.len() < DEPTH && functions.last().is_none_or(|last| last != name) {
            functions.push(name.to_owned());
        }
    }
    let text = format!("1 {kind:?} {}", functions.join(" "));
    let digest = Sha256::digest(text.as_bytes());
    let hash = digest.iter().take(8).fold(String::new(), |hash, byte| hash + &format!("{byte:02x}"));
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

    #[test]
    fn only_what_strikes_anywhere_is_named_without_a_stack() {
        for kind in [Kind::Nmi, Kind::OutOfMemory, Kind::MachineCheck, Kind::HardwareError, Kind::Planned] {
            assert!(!has_functions(kind), "{kind:?}");
            assert_eq!(of(kind, &["a"]), of(kind, &[]), "{kind:?}");
        }
        for kind in [Kind::Sysrq, Kind::Oops, Kind::SoftLockup, Kind::HungTask, Kind::Module] {
            assert!(has_functions(kind), "{kind:?}");
        }
    }

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

    fn of(kind: Kind, stack: &[&str]) -> Signature {
        super::of(kind, &stack.iter().map(|name| (*name, false)).collect::<Vec<_>>())
    }

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
    #[test]
    fn registers_of_the_fault_are_the_story() {
        // An exception starts the capture kernel with its own registers.
        let fault = ["breaker_null", "breaker_write", "vfs_write", "do_syscall_64"];
        assert_eq!(of(Kind::Oops, &fault).functions, fault[..3]);
        // Further out there may be another exception, which did no harm.
        let handler = [
            "filemap_fault",
            "handle_mm_fault",
            "do_user_addr_fault",
            "exc_page_fault",
            "asm_exc_page_fault",
        ];
        assert_eq!(of(Kind::Oops, &handler).functions, handler);
        let smashed = [
            "__crash_kexec",
            "panic",
            "__stack_chk_fail",
            "filemap_fault",
            "exc_page_fault",
            "asm_exc_page_fault",
        ];
        assert_eq!(of(Kind::StackCorruption, &smashed).functions[0], "filemap_fault");
        // However deep.
        let deep = ["breaker_recurse", "breaker_recurse", "breaker_recurse", "breaker_overflow"];
        assert_eq!(of(Kind::StackCorruption, &deep).functions, deep[2..]);
    }

    #[test]
    fn reports_of_other_versions_are_passed_over() {
        let warn = [
            "__crash_kexec",
            "vpanic",
            "panic",
            "check_panic_on_warn.cold",
            "__warn",
            "report_bug",
            "of_a_later_version",
            "exc_invalid_op",
            "asm_exc_invalid_op",
            "breaker_warn",
            "breaker_write",
        ];
        assert_eq!(of(Kind::Warning, &warn).functions, warn[9..]);
        let of_7_2 = ["__crash_kexec", "vpanic", "panic", "__report_bug", "report_bug_entry", "handle_bug"];
        let of_7_2 = [&of_7_2[..], &warn[7..]].concat();
        assert_eq!(of(Kind::Warning, &of_7_2).functions, warn[9..]);
        // In an interrupt's own code: not what that has interrupted.
        let hard = [
            "__crash_kexec",
            "panic",
            "nmi_panic",
            "watchdog_overflow_callback",
            "perf_event_nmi_handler",
            "nmi_handle",
            "default_do_nmi",
            "exc_nmi",
            "end_repeat_nmi",
            "breaker_spin",
            "breaker_handler",
            "asm_common_interrupt",
            "user_copy",
        ];
        assert_eq!(of(Kind::HardLockup, &hard).functions[..2], ["breaker_spin", "breaker_handler"]);
    }

    #[test]
    fn what_a_module_calls_while_it_spins_comes_and_goes() {
        let stack = |helpers: &[&'static str]| {
            let outer = [("breaker_retry", true), ("breaker_write", true), ("vfs_write", false)];
            let helpers = helpers.iter().map(|name| (*name, false));
            super::of(Kind::SoftLockup, &helpers.chain(outer).collect::<Vec<_>>())
        };
        assert_eq!(stack(&[]), stack(&["kfree"]));
        assert_eq!(stack(&[]), stack(&["___slab_alloc", "__kmalloc"]));
        assert_eq!(stack(&[]).functions[0], "breaker_retry");
        let place = first(Kind::SoftLockup, &[("kfree", false), ("breaker_retry", true)]);
        assert_eq!(place, Some(1));
    }
}
